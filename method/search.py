"""Search videos with a sentence: which videos show the moment, and where.

    python method/search.py --eval_ckpt results/demo/a3prvr/first/model.ckpt "a person opens the fridge"
    python method/search.py --eval_ckpt ... --query_id 'demo_00500#enc#0'   # a caption of the dataset: no text encoder
    python method/search.py --eval_ckpt ...                                 # a prompt; an empty line ends it
    python method/search.py --eval_ckpt ... --json < sentences.txt          # JSON lines, see method/serving/output.py
    python method/search.py --eval_ckpt ... --serve --video_dir videos      # a web page on http://127.0.0.1:8000
    python method/search.py "a man runs" --dataset_name charades --eval_ckpt checkpoints/charades.ckpt

A checkpoint trained here stores its options; a published one takes them from configs/<dataset>.yaml. The videos are
encoded once, into an index beside the checkpoint; rebuild it with --rebuild when the checkpoint or the features change.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import method  # noqa: F401 (sets OpenMP variables before torch is imported)

import torch
from easydict import EasyDict

from method.config.flags import Parser, user_path
from method.config.options import choose_device, make_architecture, read_options
from method.config.settings import encoder_settings, evaluation_settings
from method.data.batch import Loader
from method.data.captions import Caption, group_by_video, read_captions
from method.data.dataset import CorpusVideos, FeatureReader
from method.data.dataset_files import DATA_FILES, open_features
from method.data.provenance import check_recipe, list_videos, read_durations
from method.evaluation.corpus import encode_corpus
from method.evaluation.moments import durations, read_moments
from method.evaluation.scorer import ScoringSettings
from method.ops.precision import enable_fast_matmul
from method.runtime.errors import InputError, run_command
from method.runtime.processes import expect_one_process
from method.runtime.progress import be_quiet
from method.runtime.run_folder import log_to_terminal
from method.serving.index import fingerprint, index_path, open_index
from method.serving.prompt import Terminal, warn_without_encoder
from method.serving.searcher import Searcher
from method.text.check import check_encoder
from method.text.encoder import EncoderSettings, TextEncoder, open_text_encoder
from method.training.checkpoint import load_model, log_model_options
from method.training.resume import saved_options

log = logging.getLogger(__name__)

_LISTED_FLAGS = [
    "dataset_name",
    "config",
    "root_path",
    "device",
    "device_ids",
    "num_workers",
    "quiet",
    "video_feat_path",
    "recipe",
    "text_feat_path",
    "caption_train_txt",
    "caption_test_txt",
    "model",
    "neg_query_loss",
    "neg_query_loss_branch",
    "text encoder",
    "eval_ckpt",
    "fusion_weight",
    "eval_context_bsz",
    "eval_memory_mb",
    "eval_amp",
    "moments",
]
_SPLITS = {"test": ("test",), "train": ("train",), "both": ("test", "train")}
ALL = "all"  # videos of the feature file, with captions or without


def main(arguments: Sequence[str] | None = None) -> None:
    """Answer the query on the command line, or those of a prompt, a pipe or a web page."""
    expect_one_process("search")  # several would build the same index
    log_to_terminal()
    options = read_options(
        arguments, "Search videos with a sentence.", listed=_LISTED_FLAGS, extra=_add_flags, saved=saved_options
    )
    be_quiet(options.quiet)
    _check(options)
    searcher = make_searcher(options)
    terminal = Terminal(searcher, top_k=options.top_k, json=options.json, split=options.split)
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


def make_searcher(options: EasyDict) -> Searcher:
    """Load a checkpoint and its index of the selected videos, which is built if missing.

    InputError for files that are missing, broken or do not match.
    """
    checkpoint = options.eval_ckpt
    device = choose_device(options.device, options.device_ids)
    enable_fast_matmul(device)
    loaded = load_model(checkpoint, make_architecture(options))
    log_model_options(options, loaded)
    model = loaded.model.to(device)
    needed = [name for name in DATA_FILES if options[name] is not None or name == "video_feat_path"]
    has_captions = len(needed) > 1
    reader = open_features(
        options, options.dataset_name, model.architecture, options.root_path, DATA_FILES if has_captions else needed
    )
    check_recipe(reader, options.recipe, checkpoint)
    captions = {split: read_captions(options[f"caption_{split}_txt"]) for split in ("test", "train") if has_captions}
    options.split = options.split or ("test" if has_captions else ALL)
    if options.split == ALL:
        video_ids = list_videos(reader.videos.path, [key for key, _ in reader.streams.values()])
    elif has_captions:
        video_ids = list(group_by_video([caption for split in _SPLITS[options.split] for caption in captions[split]]))
    else:
        raise InputError(f"--split {options.split}: dataset {options.dataset_name} has no captions, expected {ALL}")
    settings = evaluation_settings(options)
    videos = Loader(CorpusVideos(reader, video_ids), settings.video_batch, settings.workers, pinned=False)
    corpus = open_index(
        index_path(checkpoint, options.split, options.index_dir),
        fingerprint(loaded.sha256, model.architecture, reader, video_ids, settings.video_batch, settings.precision),
        partial(encode_corpus, model, videos, device, settings.precision),
        options.rebuild,
    )
    known = [*{caption.id: caption for own in captions.values() for caption in own}.values()]
    moments = None
    if options.moments and options.moments.exists():  # without them, moments are shown in frames instead of seconds
        moments = read_moments(options.moments, {caption.id for caption in known})
    # The model's own dimensions, whatever the flags say.
    width, max_tokens = model.architecture.query_width, model.architecture.max_words
    encoder = replace(encoder_settings(options), width=width, max_tokens=max_tokens)
    return Searcher(
        model,
        corpus,
        known,
        reader,
        partial(_open_encoder, encoder, device, reader, known),
        {**read_durations(reader.videos.path, video_ids), **durations(known, moments or {})},
        ScoringSettings.of(settings, model),
        options.moments_per_video,
    )


def _open_encoder(
    settings: EncoderSettings, device: torch.device, reader: FeatureReader, captions: Sequence[Caption]
) -> TextEncoder:
    """Load the text encoder; warn if it does not reproduce the dataset's token features, where it has some."""
    encoder = open_text_encoder(settings, device)
    if captions:
        fits, line = check_encoder(encoder, reader, captions)
        if not fits:
            log.warning("%s", line)
    return encoder


def _add_flags(parser: Parser) -> None:
    parser.add_argument("sentence", nargs="*", default=[], help="what to search for (default: ask at a prompt)")
    # Replaces the --topk that training ignores.
    parser.conflict_handler = "resolve"
    add = parser.add_argument_group("search").add_argument
    add("--topk", dest="top_k", type=int, default=10, metavar="K", help="number of videos to show")
    add("--moments_per_video", type=int, default=1, metavar="N", help="number of moments to show of a video, at most")
    add("--query_id", metavar="ID", help="search with this caption of the dataset, using its stored token features")
    add(
        "--split",
        choices=(*_SPLITS, ALL),
        help="videos to search: evaluation split, training, both, or all of the feature file (default: test, or all "
        "for a dataset without captions)",
    )
    add("--json", action="store_true", default=False, help="print one line of JSON per query")
    add("--rebuild", action="store_true", default=False, help="rebuild the index")
    add(
        "--index_dir",
        type=user_path,
        metavar="DIR",
        help="folder of the index (default: <checkpoint>.index beside the checkpoint)",
    )
    add("--serve", action="store_true", default=False, help="serve a web page")
    add("--host", default="127.0.0.1", help="address of the web page; other than loopback: reachable from the network")
    add("--port", type=int, default=8000, help="port of the web page; 0: any free port")
    add(
        "--video_dir",
        type=user_path,
        metavar="DIR",
        help="folder, searched recursively at start-up, of the videos that the web page plays: <video id>.mp4, .webm, "
        "...",
    )


def _check(options: Mapping[str, Any]) -> None:
    if options["eval_ckpt"] is None:
        raise InputError("--eval_ckpt FILE is missing")
    if options["top_k"] < 1:
        raise InputError(f"--topk {options['top_k']}: expected at least 1")
    if options["moments_per_video"] < 1:
        raise InputError(f"--moments_per_video {options['moments_per_video']}: expected at least 1")
    if not 0 <= options["port"] <= 65535:
        raise InputError(f"--port {options['port']}: expected 0 to 65535")
    queries = {
        "a sentence": bool(options["sentence"]),
        "--query_id": options["query_id"] is not None,
        "--serve": options["serve"],
    }
    given = [name for name, is_given in queries.items() if is_given]
    if len(given) > 1:
        raise InputError(f"{' and '.join(given)} given, expected one of them")


def _serve(searcher: Searcher, options: EasyDict) -> None:
    from method.serving.web.server import make_app, serve  # Flask is only needed here

    warn_without_encoder(searcher)
    if options.video_dir is not None and not options.video_dir.is_dir():
        raise InputError(f"--video_dir {options.video_dir}: no such folder")
    serve(make_app(searcher, options.host, options.top_k, options.video_dir), options.host, options.port)


if __name__ == "__main__":
    run_command(main)
