"""The flags of the search itself, and their checks."""

from __future__ import annotations

from easydict import EasyDict

from method.config.parser import Parser, user_path
from method.runtime.errors import InputError
from method.serving.engines.choice import ENGINES
from method.serving.engines.milvus_frames import INDEXES
from method.serving.selection import ALL, SPLITS
from method.video.files import require_decoder

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


def add_flags(parser: Parser) -> None:
    """Add the flags of the search itself."""
    parser.add_argument("sentence", nargs="*", default=[], help="what to search for (default: ask at a prompt)")
    # Replaces the --topk that training ignores.
    parser.conflict_handler = "resolve"
    add_index_flags(parser)
    add_answer_flags(parser)
    add = parser.add_argument_group("output").add_argument
    add("--topk", dest="top_k", type=int, default=10, metavar="K", help="number of videos to show")
    add("--offset", type=int, default=0, metavar="N", help="number of better videos to leave out, for further pages")
    add("--query_id", metavar="ID", help="search with this caption of the dataset, using its stored token features")
    add(
        "--like",
        metavar="VIDEO@TIME",
        help="search with a moment of a searched video: VIDEO@TIME or VIDEO@START-END, in seconds or with a %% at the "
        "end in percent",
    )
    add("--json", action="store_true", default=False, help="print one line of JSON per query")
    add("--serve", action="store_true", default=False, help="serve a web page and a JSON API")
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


def add_index_flags(parser: Parser) -> None:
    """Add the flags of the index."""
    add = parser.add_argument_group("index").add_argument
    add(
        "--split",
        choices=(*SPLITS, ALL),
        help="videos to search: evaluation split, training, both, or all of the feature file (default: test, or all "
        "for a dataset without captions)",
    )
    add("--rebuild", action="store_true", default=False, help="rebuild the index")
    add("--rebuild_outdated", action="store_true", default=False, help="rebuild the index if it cannot be used")
    add(
        "--index_dir",
        type=user_path,
        metavar="DIR",
        help="folder of the index (default: <checkpoint>.index beside the checkpoint; for zero-shot CLIP beside the "
        "features)",
    )
    add(
        "--engine",
        choices=ENGINES,
        default="exact",
        help="what finds the videos: scoring every frame; means of parts of each video first; an index in Milvus",
    )
    add(
        "--engine_candidates",
        type=int,
        default=1000,
        metavar="N",
        help="of --engine coarse: number of videos whose frames are all scored, at least 4 times those shown",
    )
    add("--engine_uri", metavar="URI", help="of --engine milvus: http://HOST:PORT of a server, or FILE.db")
    add("--engine_index", choices=tuple(INDEXES), default="AUTOINDEX", help="kind of the index that Milvus builds")


def add_answer_flags(parser: Parser) -> None:
    """Add the flags of what an answer has."""
    add = parser.add_argument_group("answers").add_argument
    add("--moments_per_video", type=int, default=1, metavar="N", help="number of moments to show of a video, at most")
    add(
        "--min_confidence",
        type=float,
        default=0.0,
        metavar="P",
        help="say that there is no confident match if a smaller share of first results, 0 to 1, was right at such a "
        "score; needs utils/index.py calibrate",
    )


def check_index_flags(options: EasyDict) -> None:
    """InputError naming the flag, the value and what was expected."""
    if options.engine_candidates < 1:
        raise InputError(f"--engine_candidates {options.engine_candidates}: expected at least 1")
    if options.engine == "milvus" and options.engine_uri is None:
        raise InputError("--engine milvus needs --engine_uri, FILE.db or http://HOST:PORT")
    if options.engine != "milvus" and options.engine_uri is not None:
        raise InputError(f"--engine_uri {options.engine_uri} needs --engine milvus")


def check_answer_flags(options: EasyDict) -> None:
    """InputError naming the flag, the value and what was expected."""
    if options.moments_per_video < 1:
        raise InputError(f"--moments_per_video {options.moments_per_video}: expected at least 1")
    if not 0 <= options.min_confidence <= 1:
        raise InputError(f"--min_confidence {options.min_confidence:g}: expected 0 to 1")


def check_flags(options: EasyDict) -> None:
    """InputError naming the flag, the value and what was expected."""
    if options.top_k < 1:
        raise InputError(f"--topk {options.top_k}: expected at least 1")
    if options.offset < 0:
        raise InputError(f"--offset {options.offset}: expected at least 0")
    check_index_flags(options)
    check_answer_flags(options)
    if not 0 <= options.port <= 65535:
        raise InputError(f"--port {options.port}: expected 0 to 65535")
    queries = {
        "a sentence": bool(options.sentence),
        "--query_id": options.query_id is not None,
        "--like": options.like is not None,
        "--serve": options.serve,
    }
    given = [name for name, is_given in queries.items() if is_given]
    if len(given) > 1:
        raise InputError(f"{' and '.join(given)} given, expected one of them")
    if options.offset and options.serve:
        raise InputError("--offset and --serve given, expected one of them")
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
