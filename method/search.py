"""Search videos with a sentence: which videos show the moment, and where.

    python method/search.py --eval_ckpt results/demo/a3prvr/first/model.ckpt "a person opens the fridge"
    python method/search.py --eval_ckpt ... --query_id 'demo_00500#enc#0'   # a caption of the dataset: no text encoder
    python method/search.py --eval_ckpt ... --like demo_00500@3.5-6         # more like this moment
    python method/search.py --eval_ckpt ...                                 # a prompt; an empty line ends it
    python method/search.py --eval_ckpt ... --json < sentences.txt          # JSON lines, see docs/search.md
    python method/search.py --eval_ckpt ... --serve --video_dir videos      # a web page and JSON API on port 8000
    python method/search.py --eval_ckpt ... --video_dir videos --save_clips clips "a person opens the fridge"
    python method/search.py "a man runs" --dataset_name charades --eval_ckpt checkpoints/charades.ckpt
    python method/search.py "a man runs" --dataset_name charades --zero_shot              # CLIP, without a checkpoint

A checkpoint trained here stores its options; a published one takes them from configs/<dataset>.yaml. The videos are
encoded once, into an index beside the checkpoint, or for zero-shot CLIP beside the features; new and changed videos are
added to it. utils/index.py lists, removes and checks what it holds.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import method  # noqa: F401 (sets OpenMP variables before torch is imported)

from easydict import EasyDict

from method.config.architecture import make_architecture
from method.config.flags import make_parser
from method.config.options import read_options
from method.config.parser import Parser
from method.config.settings import dataset_files, encoder_settings, evaluation_settings, zero_shot_settings
from method.ops.precision import enable_fast_matmul
from method.runtime.errors import InputError, expect_standard_output, run_command
from method.runtime.hardware import choose_device
from method.runtime.processes import expect_one_process
from method.runtime.progress import be_quiet
from method.runtime.run_folder import log_to_terminal
from method.serving.engines.choice import EngineSettings
from method.serving.flags import (
    LISTED_FLAGS,
    add_answer_flags,
    add_flags,
    add_index_flags,
    check_answer_flags,
    check_flags,
    check_index_flags,
)
from method.serving.model_index import index_folder
from method.serving.opening import (
    SearchSettings,
    generation_of,
    open_checkpoint_searcher,
    open_zero_shot_searcher,
)
from method.serving.prompt import Terminal, warn_without_encoder
from method.serving.searcher import Searcher
from method.serving.selection import choose_split
from method.serving.source import SearcherSource
from method.serving.videos import VideoFolder
from method.training.checkpoint import load_model, log_model_options
from method.training.resume import saved_options

if TYPE_CHECKING:
    from method.serving.clips import ClipFolder


def main(arguments: Sequence[str] | None = None) -> None:
    """Answer the query on the command line, or those of a prompt, a pipe or a web page."""
    expect_one_process("search")  # several would build the same index
    log_to_terminal()
    options = read_options(
        arguments, "Search videos with a sentence.", listed=LISTED_FLAGS, extra=add_flags, saved=saved_options
    )
    be_quiet(options.quiet)
    check_flags(options)
    if options.serve:
        _serve(options)
        return
    expect_standard_output()
    searcher = load_searcher(options)
    terminal = Terminal(searcher, options.top_k, options.json, _clips(searcher, options), options.offset)
    if options.query_id is not None:
        terminal.show(searcher.search_caption(options.query_id, options.top_k, options.offset))
    elif options.like is not None:
        terminal.show(searcher.search_like(options.like, options.top_k, options.offset))
    elif options.sentence:
        terminal.answer(" ".join(options.sentence))
    elif sys.stdin is None:
        raise InputError("no sentence given, and standard input is closed")
    elif sys.stdin.isatty():
        terminal.prompt()
    else:
        terminal.answer_lines()


def open_searcher(checkpoint: Path | str | None = None, dataset: str | None = None, **flags: Any) -> Searcher:
    """Open a search in Python.

    Args:
        checkpoint: `--eval_ckpt`; None with `zero_shot=True`.
        dataset: `--dataset_name`, for a checkpoint that does not state it.
        flags: others of the command line by their names, with its defaults: `split="both"`, `device=-1`.

    Raises:
        InputError: as the command line, such as for an unknown flag or a missing file.
    """
    options = read_options(
        _words({"eval_ckpt": checkpoint, "dataset_name": dataset, **flags}),
        extra=_add_opening_flags,
        saved=saved_options,
    )
    check_index_flags(options)
    check_answer_flags(options)
    return load_searcher(options)


def _add_opening_flags(parser: Parser) -> None:
    add_index_flags(parser)
    add_answer_flags(parser)


def _words(flags: Mapping[str, Any]) -> list[str]:
    """Flags as the words of a command line; those that are None are left out."""
    switches = make_parser("").switches
    words = []
    for name, value in flags.items():
        if isinstance(value, bool) and name not in switches:
            words += [f"--{name}"] * value  # off unless it is given
        elif isinstance(value, list | tuple):
            words += [f"--{name}", *map(str, value)]
        elif value is not None:
            words.append(f"--{name}={value}")
    return words


def load_searcher(options: EasyDict) -> Searcher:
    """Load what searches, a checkpoint, zero-shot CLIP or both, and open the search that the options describe."""
    settings = search_settings(options)
    return _load(options)(settings)


def load_source(options: EasyDict) -> SearcherSource:
    """Like `load_searcher`; the search is opened again whenever the index on disk has changed."""
    settings = search_settings(options)
    again = replace(settings, rebuild=False, rebuild_outdated=False)
    open_search = _load(options)
    opened = generation_of(again)
    searcher = open_search(settings)
    if opened is None or settings.rebuild:  # the index was built here
        opened = generation_of(again)
    return SearcherSource(searcher, partial(generation_of, again), partial(open_search, again), opened)


def search_settings(options: EasyDict) -> SearchSettings:
    """What the options say of the search; sets the split that is searched by default."""
    if options.eval_ckpt is None and not options.zero_shot:
        raise InputError("--eval_ckpt FILE or --zero_shot is missing")
    files = dataset_files(options)
    options.split = choose_split(files, options.split)
    return SearchSettings(
        checkpoint=options.eval_ckpt,
        zero_shot=zero_shot_settings(options),
        files=files,
        split=options.split,
        index_dir=options.index_dir,
        rebuild=options.rebuild,
        rebuild_outdated=options.rebuild_outdated,
        moments=options.moments,
        moments_per_video=options.moments_per_video,
        min_confidence=options.min_confidence,
        evaluation=evaluation_settings(options),
        encoder=encoder_settings(options),
        engine=EngineSettings(options.engine, options.engine_candidates, options.engine_uri, options.engine_index),
    )


def _load(options: EasyDict) -> Callable[[SearchSettings], Searcher]:
    """Load the model; returns what opens a search with it."""
    device = choose_device(options.device, options.device_ids)
    enable_fast_matmul(device)
    if options.zero_shot:
        return partial(open_zero_shot_searcher, device=device)
    architecture = make_architecture(options)
    loaded = load_model(options.eval_ckpt, architecture)
    log_model_options(loaded, architecture, options)
    return partial(open_checkpoint_searcher, loaded.model.to(device), loaded.sha256)


def _clips(searcher: Searcher, options: EasyDict) -> ClipFolder | None:
    if options.save_clips is None:
        return None
    from method.serving.clips import ClipFolder  # here, because it imports the package av

    if not any(searcher.duration(video_id) for video_id in searcher.video_ids):
        raise InputError(
            "--save_clips: the durations of these videos are unknown, and moments are in frames; name a file of "
            "moments with --moments, or extract the features with utils/extract_features.py"
        )
    return ClipFolder(options.save_clips, VideoFolder(options.video_dir))


def _serve(options: EasyDict) -> None:
    from method.serving.web.server import make_app, serve  # Flask is only needed here

    source = load_source(options)
    warn_without_encoder(source.current())
    # Beside the index; that of no checkpoint is beside the features.
    index = index_folder(options.eval_ckpt or options.video_feat_path, options.index_dir)
    app = make_app(source, options.host, options.top_k, options.video_dir, index / "extracts")
    serve(app, options.host, options.port)


if __name__ == "__main__":
    run_command(main)
