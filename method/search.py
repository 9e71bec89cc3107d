"""Search videos with a sentence: which videos show the moment, and where.

    python method/search.py --eval_ckpt results/demo/a3prvr/first/model.ckpt "a person opens the fridge"
    python method/search.py --eval_ckpt ... --query_id 'demo_00500#enc#0'   # a caption of the dataset: no text encoder
    python method/search.py --eval_ckpt ...                                 # a prompt; an empty line ends it
    python method/search.py --eval_ckpt ... --json < sentences.txt          # JSON lines, see method/serving/output.py
    python method/search.py --eval_ckpt ... --serve --video_dir videos      # a web page on http://127.0.0.1:8000
    python method/search.py --eval_ckpt ... --video_dir videos --save_clips clips "a person opens the fridge"
    python method/search.py "a man runs" --dataset_name charades --eval_ckpt checkpoints/charades.ckpt
    python method/search.py "a man runs" --dataset_name charades --zero_shot              # CLIP, without a checkpoint

A checkpoint trained here stores its options; a published one takes them from configs/<dataset>.yaml. The videos are
encoded once, into an index beside the checkpoint, or for zero-shot CLIP beside the features; new and changed videos are
added to it. utils/index.py lists, removes and checks what it holds.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import method  # noqa: F401 (sets OpenMP variables before torch is imported)

from easydict import EasyDict

from method.config.architecture import make_architecture
from method.config.options import read_options
from method.config.parser import Parser, user_path
from method.config.settings import dataset_files, encoder_settings, evaluation_settings, zero_shot_settings
from method.ops.precision import enable_fast_matmul
from method.runtime.errors import InputError, expect_standard_output, run_command
from method.runtime.hardware import choose_device
from method.runtime.processes import expect_one_process
from method.runtime.progress import be_quiet
from method.runtime.run_folder import log_to_terminal
from method.serving.engines.choice import ENGINES, EngineSettings
from method.serving.engines.milvus_frames import INDEXES
from method.serving.model_index import index_folder
from method.serving.opening import SearchSettings, open_searcher, open_zero_shot_searcher
from method.serving.prompt import Terminal, warn_without_encoder
from method.serving.searcher import Searcher
from method.serving.selection import ALL, SPLITS, choose_split
from method.serving.videos import VideoFolder
from method.training.checkpoint import load_model, log_model_options
from method.training.resume import saved_options
from method.video.files import require_decoder

if TYPE_CHECKING:
    from method.serving.clips import ClipFolder

LISTED_FLAGS = [
    "dataset_name",
    "config",
    "root_path",
    "device",
    "device_ids",
    "num_workers",
    "quiet",
    "video_feat_path",
    "feature_recipe",
    "text_feat_path",
    "caption_train_txt",
    "caption_test_txt",
    "model",
    "neg_query_loss",
    "neg_query_loss_branch",
    "text encoder",
    "eval_ckpt",
    "zero_shot",
    "zero_shot_weight",
    "zero_shot_text",
    "clip_encoder",
    "fusion_weight",
    "eval_context_bsz",
    "eval_memory_mb",
    "eval_amp",
    "moments",
]


def main(arguments: Sequence[str] | None = None) -> None:
    """Answer the query on the command line, or those of a prompt, a pipe or a web page."""
    expect_one_process("search")  # several would build the same index
    log_to_terminal()
    options = read_options(
        arguments, "Search videos with a sentence.", listed=LISTED_FLAGS, extra=add_flags, saved=saved_options
    )
    be_quiet(options.quiet)
    _check(options)
    if not options.serve:
        expect_standard_output()
    searcher = load_searcher(options)
    terminal = Terminal(
        searcher, top_k=options.top_k, json=options.json, split=options.split, clips=_clips(searcher, options)
    )
    if options.serve:
        _serve(searcher, options)
    elif options.query_id is not None:
        terminal.show(searcher.search_caption(options.query_id, options.top_k))
    elif options.sentence:
        terminal.answer(" ".join(options.sentence))
    elif sys.stdin is None:
        raise InputError("no sentence given, and standard input is closed")
    elif sys.stdin.isatty():
        terminal.prompt()
    else:
        terminal.answer_lines()


def load_searcher(options: EasyDict) -> Searcher:
    """Load what searches, a checkpoint, zero-shot CLIP or both, and open the search that the options describe."""
    device = choose_device(options.device, options.device_ids)
    enable_fast_matmul(device)
    files, architecture = dataset_files(options), make_architecture(options)
    options.split = choose_split(files, options.split)
    settings = SearchSettings(
        checkpoint=options.eval_ckpt,
        zero_shot=zero_shot_settings(options),
        files=files,
        split=options.split,
        index_dir=options.index_dir,
        rebuild=options.rebuild,
        rebuild_outdated=options.rebuild_outdated,
        moments=options.moments,
        moments_per_video=options.moments_per_video,
        evaluation=evaluation_settings(options),
        encoder=encoder_settings(options),
        engine=EngineSettings(options.engine, options.engine_uri, options.engine_index),
    )
    if options.zero_shot:
        return open_zero_shot_searcher(settings, device)
    loaded = load_model(options.eval_ckpt, architecture)
    log_model_options(loaded, architecture, options)
    return open_searcher(loaded.model.to(device), loaded.sha256, settings)


def add_flags(parser: Parser) -> None:
    """Add the flags of the search itself."""
    parser.add_argument("sentence", nargs="*", default=[], help="what to search for (default: ask at a prompt)")
    # Replaces the --topk that training ignores.
    parser.conflict_handler = "resolve"
    add = parser.add_argument_group("search").add_argument
    add("--topk", dest="top_k", type=int, default=10, metavar="K", help="number of videos to show")
    add("--moments_per_video", type=int, default=1, metavar="N", help="number of moments to show of a video, at most")
    add("--query_id", metavar="ID", help="search with this caption of the dataset, using its stored token features")
    add(
        "--split",
        choices=(*SPLITS, ALL),
        help="videos to search: evaluation split, training, both, or all of the feature file (default: test, or all "
        "for a dataset without captions)",
    )
    add("--json", action="store_true", default=False, help="print one line of JSON per query")
    add("--rebuild", action="store_true", default=False, help="rebuild the index")
    add("--rebuild_outdated", action="store_true", default=False, help="rebuild the index if it cannot be used")
    add(
        "--index_dir",
        type=user_path,
        metavar="DIR",
        help="folder of the index (default: <checkpoint>.index beside the checkpoint; for zero-shot CLIP beside the "
        "features)",
    )
    add("--engine", choices=ENGINES, default="exact", help="what finds the videos: scoring all, or an index in Milvus")
    add("--engine_uri", metavar="URI", help="of --engine milvus: http://HOST:PORT of a server, or FILE.db")
    add("--engine_index", choices=tuple(INDEXES), default="AUTOINDEX", help="kind of the index that Milvus builds")
    add("--serve", action="store_true", default=False, help="serve a web page")
    add("--host", default="127.0.0.1", help="address of the web page; other than loopback: reachable from the network")
    add("--port", type=int, default=8000, help="port of the web page; 0: any free port")
    add(
        "--video_dir",
        type=user_path,
        metavar="DIR",
        help="folder, searched recursively at start-up, of the videos that the web page plays and clips are cut from: "
        "<video id>.mp4, .webm, ...",
    )
    add(
        "--save_clips",
        type=user_path,
        metavar="DIR",
        help="cut the moments that are found from the files of --video_dir, as MP4 files in this folder",
    )


def _check(options: EasyDict) -> None:
    if options.eval_ckpt is None and not options.zero_shot:
        raise InputError("--eval_ckpt FILE or --zero_shot is missing")
    if options.top_k < 1:
        raise InputError(f"--topk {options.top_k}: expected at least 1")
    if options.moments_per_video < 1:
        raise InputError(f"--moments_per_video {options.moments_per_video}: expected at least 1")
    if options.engine == "milvus" and options.engine_uri is None:
        raise InputError("--engine milvus needs --engine_uri, FILE.db or http://HOST:PORT")
    if options.engine != "milvus" and options.engine_uri is not None:
        raise InputError(f"--engine_uri {options.engine_uri} needs --engine milvus")
    if not 0 <= options.port <= 65535:
        raise InputError(f"--port {options.port}: expected 0 to 65535")
    queries = {
        "a sentence": bool(options.sentence),
        "--query_id": options.query_id is not None,
        "--serve": options.serve,
    }
    given = [name for name, is_given in queries.items() if is_given]
    if len(given) > 1:
        raise InputError(f"{' and '.join(given)} given, expected one of them")
    if options.video_dir is not None and not options.video_dir.is_dir():
        raise InputError(f"--video_dir {options.video_dir}: no such folder")
    if options.save_clips is not None:
        if options.serve:
            raise InputError("--save_clips and --serve given, expected one of them")
        if options.video_dir is None:
            raise InputError("--save_clips needs --video_dir DIR, the folder of the videos to cut")
        if options.save_clips.exists() and not options.save_clips.is_dir():
            raise InputError(f"--save_clips {options.save_clips}: a file, expected a folder")
        require_decoder()


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


def _serve(searcher: Searcher, options: EasyDict) -> None:
    from method.serving.web.server import make_app, serve  # Flask is only needed here

    warn_without_encoder(searcher)
    # Beside the index; that of no checkpoint is beside the features.
    index = index_folder(options.eval_ckpt or options.video_feat_path, options.index_dir)
    app = make_app(searcher, options.host, options.top_k, options.video_dir, index / "extracts")
    serve(app, options.host, options.port)


if __name__ == "__main__":
    run_command(main)
