"""Search a folder of videos with a sentence: what is missing is downloaded, extracted and indexed first.

    python utils/search_videos.py VIDEO_FOLDER "a dog jumps into the water"
    python utils/search_videos.py VIDEO_FOLDER                                   # a web page that plays the moments
    python utils/search_videos.py VIDEO_FOLDER --eval_ckpt checkpoints/charades.ckpt "a person opens the fridge"

Without a checkpoint the search is by zero-shot CLIP, with one by both; --zero_shot_weight is CLIP's weight. The steps
are utils/download_encoders.py, utils/extract_features.py and method/search.py, whose other flags can be given. The same
command continues after an interruption. Exit status 1 if some videos could not be read.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import method  # noqa: F401 (sets OpenMP variables before torch is imported)

from method import search
from method.config.flags import make_parser
from method.config.options import given_flags, known_datasets
from method.config.own_dataset import own_features
from method.config.parser import Parser, user_path
from method.data.features import ACTION_KEY, OBJECT_KEY
from method.data.provenance import read_description, read_sources
from method.runtime.errors import InputError, run_command
from method.runtime.hub.models import find_model
from method.runtime.pretrained import CLIP_FOLDER, clip_files
from method.runtime.run_folder import log_to_terminal
from method.serving.flags import LISTED_FLAGS, add_flags
from method.serving.selection import ALL
from method.text.encoder_files import has_tokenizer, require_parts
from method.training.resume import saved_options
from method.video.files import require_decoder
from method.video.recipes import find_recipe
from utils import download_encoders, extract_features

# CLIP's cosines with different videos differ by a few hundredths, those of a trained model by more: its loss asks for a
# margin of 0.2. This weight is meant to give both about the same say.
WEIGHT = 0.8
_NOT_LISTED = {"config", "caption_train_txt", "caption_test_txt", "text_feat_path", "video_feat_path", "moments"}
_NOT_LISTED |= {"model", "neg_query_loss", "neg_query_loss_branch"}
_ROBERTA = Path("checkpoints/roberta-large")


def main(arguments: Sequence[str] | None = None) -> None:
    """Search the folder of the command line; SystemExit with status 1 if some of its videos could not be read."""
    words = [_of_features(word) for word in (sys.argv[1:] if arguments is None else arguments)]
    folder = words.pop(0) if words and not words[0].startswith("-") else None
    given = given_flags(_parser(), words)
    if folder is None:
        raise InputError('VIDEO_FOLDER is missing, expected: VIDEO_FOLDER ["a sentence"] [flags]')
    log_to_terminal()
    status = _search(user_path(folder).absolute(), words, given)
    if status:
        raise SystemExit(status)


def _of_features(word: str) -> str:
    """A word of the command line for the parser of the search, where --recipe is that of trainings."""
    name, *value = word.split("=", 1)
    return "=".join(["--feature_recipe", *value]) if name == "--recipe" else word


def _parser() -> Parser:
    listed = [name for name in LISTED_FLAGS if name not in _NOT_LISTED]
    parser = make_parser("Search a folder of videos: the first argument, before a sentence and flags.", listed)
    add_flags(parser)
    # Here --recipe is that of the features; `add_flags` lets a flag replace others.
    parser.add_argument_group("features").add_argument(
        "--recipe", "--feature_recipe", dest="feature_recipe", metavar="NAME"
    )
    parser.usage = "%(prog)s VIDEO_FOLDER [sentence] [flags]"
    parser.replace_help(
        sentence="what to search for (default: serve a web page that plays the moments)",
        dataset_name="under which the features are kept (default: made of the folder's name and place)",
        feature_recipe="feature recipe: charades or activitynet (default: that of the features there or of "
        "--eval_ckpt, else charades)",
        zero_shot_weight="weight of zero-shot CLIP beside --eval_ckpt, from 0 to 1 (default: "
        f"{WEIGHT}, or 0 for a checkpoint that was trained on these videos)",
        split="videos to search; all but the default need captions (default: all)",
        video_dir="folder of the videos that the web page plays and clips are cut from (default: VIDEO_FOLDER)",
    )
    return parser


def _search(folder: Path, words: Sequence[str], given: Mapping[str, Any]) -> int:
    """Download, extract, index and search; returns the exit status."""
    videos = _find_videos(folder)
    root = given.get("root_path", Path()).absolute()
    if not root.is_dir():
        raise InputError(f"--root_path {root}: no such folder")
    stored = {}
    if checkpoint := given.get("eval_ckpt"):
        stored = saved_options({"eval_ckpt": root / find_model(checkpoint, root)})
        if not given.get("query_id"):
            require_parts(root / given.get("text_encoder", stored.get("text_encoder", _ROBERTA)))
    name = _dataset_name(folder, root, given)
    features = own_features(root, name)
    status = 0
    if not _is_current(features, videos):
        status = _extract(folder, root, name, features, given, stored)
    elif not given.get("zero_shot_text"):
        _download(root, {"clip": _needs_clip(root, given)})
    if not features.exists():
        raise InputError(f"{folder}: none of its {len(videos)} videos could be read, see the reasons above")
    more = ["--dataset_name", name, "--root_path", str(root), "--rebuild_outdated"]
    if not checkpoint:
        more += ["--zero_shot"]
    elif "zero_shot_weight" not in given and stored.get("dataset_name") != name:
        more += ["--zero_shot_weight", str(WEIGHT)]
    if not any(given.get(flag) for flag in ("sentence", "query_id", "like", "json", "serve")):
        more += ["--serve"]
    if "split" not in given:
        more += ["--split", ALL]
    if "video_dir" not in given:
        more += ["--video_dir", str(folder)]
    search.main([*words, *more])
    return status


def _find_videos(folder: Path) -> dict[str, Path]:
    """The videos of the folder by id. InputError without any, or without the package that reads them."""
    require_decoder()
    from method.video.decode import SUFFIXES, find_videos

    videos = find_videos(folder)
    if not videos:
        raise InputError(f"{folder}: no videos in this folder or below, expected files of {', '.join(SUFFIXES)}")
    return videos


def _dataset_name(folder: Path, root: Path, given: Mapping[str, Any]) -> str:
    """The name under which features are kept: from the folder's name and place, so that no two folders share one.

    Features by CLIP alone have a name of their own; those of both streams serve a search without checkpoint, too.
    """
    if "dataset_name" in given:
        if (name := str(given["dataset_name"])) in known_datasets():
            raise InputError(f"--dataset_name {name}: a dataset of configs/, expected a name for these videos")
        return name
    place = hashlib.sha256(str(folder.resolve()).encode("utf-8", "surrogateescape")).hexdigest()[:8]
    name = f"{re.sub(r'[^A-Za-z0-9]+', '_', folder.resolve().name).strip('_') or 'videos'}_{place}"
    return name if given.get("eval_ckpt") or own_features(root, name).exists() else f"{name}_clip"


def _is_current(features: Path, videos: Mapping[str, Path]) -> bool:
    """Whether the features are those of exactly these files."""
    description = read_description(features) if features.exists() else None
    if description is None:
        return False
    sources = read_sources(features, description["streams"])
    return sources.keys() == videos.keys() and all(sources[own].is_file(path) for own, path in videos.items())


def _extract(
    folder: Path, root: Path, name: str, features: Path, given: Mapping[str, Any], stored: Mapping[str, Any]
) -> int:
    """Extract the features of new and changed videos; returns the exit status."""
    description = read_description(features) if features.exists() else None
    if description is not None:
        streams, recipe = list(description["streams"]), given.get("feature_recipe") or description["recipe"]
        if given.get("eval_ckpt") and stored.get("action_branch", True) and ACTION_KEY not in streams:
            raise InputError(
                f"{features}: holds {' and '.join(streams)} alone, and the checkpoint needs {ACTION_KEY}, too; choose "
                "another --dataset_name"
            )
    else:
        streams = [ACTION_KEY, OBJECT_KEY] if given.get("eval_ckpt") else [OBJECT_KEY]
        recipe = given.get("feature_recipe") or (stored.get("feature_recipe") or "charades").split()[0]
    i3d = root / "checkpoints" / "i3d" / find_recipe(recipe).i3d_feat.weights
    _download(root, {"clip": _needs_clip(root, given), "i3d": ACTION_KEY in streams and not i3d.exists()})
    words = [str(folder), "--dataset_name", name, "--root_path", str(root), "--recipe", recipe, "--streams", *streams]
    words += ["--clip_encoder", str(given.get("clip_encoder", CLIP_FOLDER))] if OBJECT_KEY in streams else []
    words += ["--device", str(given["device"])] if "device" in given else []
    words += ["--quiet"] if given.get("quiet") else []
    try:
        extract_features.main(words)
    except SystemExit as end:
        if end.code != extract_features.SOME_FAILED:
            raise  # terminated by a signal
        return extract_features.SOME_FAILED  # the other videos are searched
    return 0


def _needs_clip(root: Path, given: Mapping[str, Any]) -> bool:
    """Whether CLIP has to be downloaded. InputError if it is missing in a folder that the user named."""
    folder = root / given.get("clip_encoder", CLIP_FOLDER)
    try:
        clip_files(folder)
    except InputError:
        if "clip_encoder" in given:
            raise
        return True
    return "clip_encoder" not in given and not has_tokenizer(folder)


def _download(root: Path, needed: Mapping[str, bool]) -> None:
    """Download the encoders that are needed, after a question on a terminal. InputError if the answer is no."""
    names = [name for name, is_needed in needed.items() if is_needed]
    if not names:
        return
    command = f"python utils/download_encoders.py {' '.join(names)} --root_path {root}"
    sizes = ", ".join(f"{name} (about {download_encoders.SIZES[name]})" for name in names)
    print(f"missing encoders, to be downloaded once: {sizes}", file=sys.stderr, flush=True)
    if sys.stdin is not None and sys.stdin.isatty():
        print("Download? [Y/n] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("", "y", "yes"):
            raise InputError(f"not downloaded; get the encoders with: {command}")
    try:
        download_encoders.main([*names, "--root_path", str(root)])
    except InputError as error:
        raise InputError(f"{error}; on a machine with a network: {command}") from error


if __name__ == "__main__":
    run_command(main)
