"""Write the demo: a small synthetic dataset in the published layout.

    python utils/make_demo_dataset.py --out demo
    python utils/make_demo_dataset.py --out demo --tiny_roberta    # with a text encoder, for edits and search

utils/demo/world.py describes the data. An existing demo is kept if its options, generator version and file digests
match, and replaced otherwise.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import method  # noqa: F401 (sets OpenMP variables before torch is imported)

import h5py
import torch
from tqdm import tqdm

from method.config.parser import Parser, user_path
from method.runtime.disk import move
from method.runtime.errors import InputError, run_command
from method.runtime.files import read_json, sha256, write_json, write_text
from method.runtime.locks import exclusive_lock
from utils.captions.tagger import write_vocabulary
from utils.demo.encoder import HEADS, save_encoder
from utils.demo.language import sentence
from utils.demo.world import Moment, Rows, Settings, Video, action_stream, object_stream, plan_videos, token_features

GENERATOR = "A3PRVR demo"
VERSION = 1  # to be raised when the same options give other files
STAMP = "demo.json"


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the dataset unless it exists."""
    parser = Parser(description="Write the demo dataset.")
    parser.add_argument("--out", type=user_path, required=True, help="folder in which dataset/demo_i3d/ is written")
    parser.add_argument("--videos", type=int, default=500, help="training videos")
    parser.add_argument("--val", type=int, default=150, help="evaluated videos")
    parser.add_argument("--seed", type=int, default=0, help="random seed")
    parser.add_argument("--visual_feat_dim", type=int, default=64, help="width of i3d_feat")
    parser.add_argument("--visual_flow_feat_dim", type=int, default=48, help="width of clip_feat")
    parser.add_argument("--q_feat_size", type=int, default=48, help="width of the token features")
    parser.add_argument(
        "--tiny_roberta",
        action="store_true",
        help="compute token features with a small RoBERTa, saved in checkpoints/roberta-large",
    )
    options = vars(parser.parse_args(arguments))
    out = options.pop("out")
    settings = Settings(**options)
    written = make_demo(out, settings)
    note = "" if written else ", already up to date"
    print(f"{out}: {settings.videos} training and {settings.val} evaluated videos{note}")


def make_demo(out: Path, settings: Settings) -> bool:
    """Write the dataset, and the text encoder if requested, below `out`.

    Returns False if they already exist with the same settings. InputError for invalid settings, and for a target
    folder that does not hold a demo.
    """
    _check(settings)
    out.mkdir(parents=True, exist_ok=True)
    dataset, encoder = out / "dataset" / "demo_i3d", out / "checkpoints" / "roberta-large"
    folders = [encoder, dataset] if settings.tiny_roberta else [dataset]
    if _are_complete(folders, settings):
        return False
    with exclusive_lock(out / ".demo.lock", f"waiting for another process that writes the demo in {out}"):
        if _are_complete(folders, settings):  # written by that process
            return False
        encode = partial(_synthetic, settings=settings)
        if settings.tiny_roberta:
            _replace(encoder, settings, partial(save_encoder, width=settings.q_feat_size, seed=settings.seed))
            encode = partial(_encoded, folder=encoder, width=settings.q_feat_size)
        _replace(dataset, settings, partial(write_dataset, settings=settings, encode=encode))
    return True


def write_dataset(folder: Path, settings: Settings, encode: Callable[[Sequence[Moment]], Iterator[Rows]]) -> None:
    """Write every file of the dataset; `encode` yields the token features (w, Dq) of each moment's caption."""
    splits = plan_videos(settings)
    videos = [video for own in splits.values() for video in own]
    moments = [moment for video in videos for moment in video.moments]
    features, text = folder / "FeatureData", folder / "TextData"
    features.mkdir()
    text.mkdir()
    with h5py.File(features / "demo_clip_i3d_numpy.hdf5", "w", locking=False) as file:
        for video in tqdm(videos, desc="videos", disable=None):
            file[f"{video.id}/i3d_feat"] = action_stream(video, settings)
            file[f"{video.id}/clip_feat"] = object_stream(video, settings)
    with h5py.File(text / "roberta_demo_query_feat.hdf5", "w", locking=False) as file:
        for moment, rows_wD in zip(tqdm(moments, desc="captions", disable=None), encode(moments), strict=True):
            file[moment.caption_id] = rows_wD
    _write_captions(text, splits)
    for kind in ("action", "object"):
        tags = {
            moment.caption_id: {word.text: word.tag for word in moment.words if word.kind == kind} for moment in moments
        }
        write_vocabulary(text / f"demo_id_{kind}_dict.json", text / f"demo_total_{kind}_dict.json", tags)


def _write_captions(folder: Path, splits: Mapping[str, Sequence[Video]]) -> None:
    for split, videos in splits.items():
        lines = [f"{moment.caption_id} {sentence(moment.words)}\n" for video in videos for moment in video.moments]
        write_text(folder / f"demo{split}.caption.txt", "".join(lines))
    rows = [
        {"cap_id": moment.caption_id, "start": moment.start, "end": moment.end, "duration": video.duration}
        for video in splits["val"]
        for moment in video.moments
    ]
    write_text(folder / "demoval.moments.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows))


def _synthetic(moments: Sequence[Moment], settings: Settings) -> Iterator[Rows]:
    for moment in moments:
        yield token_features(moment.words, settings)


def _encoded(moments: Sequence[Moment], folder: Path, width: int) -> Iterator[Rows]:
    # The same encoder as in training, so that a caption and its edits differ only in a word.
    from method.text.encoder import TextEncoder

    encoder = TextEncoder(folder, width, max_tokens=30, device=torch.device("cpu"))
    encoded = encoder.encode([sentence(moment.words) for moment in moments])
    for rows_wD in encoded.values.split(encoded.layout.lengths):
        yield rows_wD.numpy()


def _replace(target: Path, settings: Settings, write: Callable[[Path], None]) -> None:
    """Replace `target` by a folder filled by `write`, so that it is complete or absent."""
    fresh, old = target.with_name(f".{target.name}.new"), target.with_name(f".{target.name}.old")
    for leftover in (fresh, old):
        if leftover.exists():
            shutil.rmtree(leftover)
    fresh.mkdir(parents=True)
    write(fresh)
    files = {str(path.relative_to(fresh)): sha256(path) for path in sorted(fresh.rglob("*")) if path.is_file()}
    write_json(fresh / STAMP, {**_stamp(settings), "files": files})
    if target.exists():
        move(target, old)
    move(fresh, target)
    shutil.rmtree(old, ignore_errors=True)


def _stamp(settings: Settings) -> dict[str, Any]:
    return {"generator": GENERATOR, "version": VERSION, **asdict(settings)}


def _are_complete(folders: Sequence[Path], settings: Settings) -> bool:
    complete = [_is_complete(folder, settings) for folder in folders]  # check all before writing to any
    return all(complete)


def _is_complete(target: Path, settings: Settings) -> bool:
    """Whether a folder holds the demo with these settings and unmodified files.

    InputError for a folder that holds anything else.
    """
    if not target.exists():
        return False
    stamp = read_json(target / STAMP) if (target / STAMP).exists() else None
    if not isinstance(stamp, dict) or stamp.get("generator") != GENERATOR:
        raise InputError(f"{target}: no demo (it has no {STAMP}), expected a new folder or a demo to replace")
    files = stamp.pop("files", None)  # demos of earlier versions do not list them
    if stamp != _stamp(settings) or not isinstance(files, dict):
        return False
    return all((target / name).is_file() and sha256(target / name) == digest for name, digest in files.items())


def _check(settings: Settings) -> None:
    for flag, value in asdict(settings).items():
        minimum = 0 if flag in ("seed", "tiny_roberta") else 1
        if value < minimum:
            raise InputError(f"--{flag} {value}: expected at least {minimum}")
    if settings.tiny_roberta and settings.q_feat_size % HEADS:
        raise InputError(f"--q_feat_size {settings.q_feat_size}: expected a multiple of {HEADS} with --tiny_roberta")


if __name__ == "__main__":
    run_command(main)
