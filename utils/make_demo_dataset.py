"""Make the demo: small videos of moving shapes, sentences about their moments, small encoders, and the dataset of both.

    python utils/make_demo_dataset.py --out demo

writes demo/videos/, demo/sentences.csv and demo/checkpoints/, and from these, by the code of utils/extract_features.py
and utils/add_captions.py, the dataset demo/dataset/demo_i3d/. It can be interrupted at any time, and the same command
continues. Files that are there and intact are kept; the demo of another version or with other options is replaced.
"""

from __future__ import annotations

import csv
import io
import os
import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import method  # noqa: F401 (sets OpenMP variables before torch is imported)

import torch

from method.config.parser import Parser, user_path
from method.runtime.errors import InputError, run_command
from method.runtime.files import atomic_writer, read_json, sha256, write_json, write_text
from method.runtime.locks import exclusive_lock
from method.runtime.progress import progress_bar
from method.runtime.run_folder import log_to_terminal
from utils import extract_features
from utils.captions.dataset import CaptionSettings, add_captions
from utils.demo.language import tag_sentences, word_vectors
from utils.demo.scenes import SUFFIX, Video, draw, plan_video, write_video
from utils.demo.text_encoder import save_text_encoder
from utils.demo.video_encoders import save_image_encoder, save_motion_encoder

GENERATOR = "A3PRVR demo"
VERSION = 2  # to be raised when the same options give other files
NAME, RECIPE = "demo", "small"
STAMP = f"dataset/{NAME}_i3d/demo.json"
VIDEOS, TABLE, ENCODERS = "videos", "sentences.csv", "checkpoints"
CLIP, I3D, TEXT = (f"{ENCODERS}/{name}" for name in ("clip-small", "i3d/i3d_small.pt", "roberta-large"))
TEXT_WIDTH = 48
_MADE = (f"dataset/{NAME}_i3d", VIDEOS, TABLE, CLIP, I3D, TEXT)
_EXAMPLES, _EVERY = 60, 8  # videos whose frames the image encoder is fitted to, and every which of them


@dataclass(frozen=True)
class Settings:
    """Numbers of training and of evaluated videos, and the seed."""

    videos: int
    val: int
    seed: int


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the demo unless it exists."""
    parser = Parser(description="Make the demo: videos, sentences, encoders and their dataset.")
    parser.add_argument("--out", type=user_path, required=True, help="folder of the demo")
    parser.add_argument("--videos", type=int, default=400, help="training videos")
    parser.add_argument("--val", type=int, default=120, help="evaluated videos")
    parser.add_argument("--seed", type=int, default=0, help="random seed")
    parser.add_argument("--tiny_roberta", action="store_true", help="no effect: the text encoder is always written")
    options = vars(parser.parse_args(arguments))
    log_to_terminal()
    out = options.pop("out").absolute()
    del options["tiny_roberta"]  # of earlier versions
    settings = Settings(**options)
    written = make_demo(out, settings)
    note = "" if written else ", already up to date"
    print(f"{out}: {settings.videos} training and {settings.val} evaluated videos{note}")
    evaluated = plan_videos(settings)["test"]
    print(f"SumR of a model that never errs: {best_sumr(evaluated):.1f}, because some moments look alike", flush=True)


def make_demo(out: Path, settings: Settings) -> bool:
    """Make whatever of the demo is missing below `out`.

    Returns False if it is there and intact. InputError for invalid settings, and for a folder with other content.
    """
    for flag, value in asdict(settings).items():
        if value < (0 if flag == "seed" else 1):
            raise InputError(f"--{flag} {value}: expected at least {0 if flag == 'seed' else 1}")
    out.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(out / ".demo.lock", f"waiting for another process that makes the demo in {out}"):
        if _is_complete(out, settings):
            return False
        write_json(out / STAMP, _stamp(settings))
        splits = plan_videos(settings)
        _write_videos(out / VIDEOS, [video for own in splits.values() for video in own], settings.seed)
        write_text(out / TABLE, _table(splits))
        _save_encoders(out, settings.seed)
        extract_features.main(
            [
                *f"--dataset_name {NAME} --recipe {RECIPE} --clip_encoder {CLIP} --device -1".split(),
                *("--root_path", str(out), str(out / VIDEOS)),
            ]
        )
        captions = CaptionSettings(out / TABLE, NAME, out, out / TEXT, torch.device("cpu"), writes_yaml=False)
        for line in add_captions(captions, lambda: tag_sentences):
            print(line)
        write_json(out / STAMP, {**_stamp(settings), "files": _digests(out)})
    return True


def plan_videos(settings: Settings) -> dict[str, list[Video]]:
    """The videos of each split."""
    count = settings.videos + settings.val
    videos = [plan_video(f"{NAME}_{index:05d}", settings.seed) for index in range(count)]
    return {"train": videos[: settings.videos], "test": videos[settings.videos :]}


def best_sumr(videos: Sequence[Video]) -> float:
    """The SumR to be expected of a model that knows which videos show what a sentence says, and no more.

    Of n videos that all show it, the right one is among the first k with the probability k / n.
    """
    showing = Counter(event for video in videos for event in {moment.event for moment in video.moments})
    numbers = [showing[moment.event] for video in videos for moment in video.moments]
    return sum(100 * min(k / n, 1) for n in numbers for k in (1, 5, 10, 100)) / len(numbers)


def _write_videos(folder: Path, videos: Sequence[Video], seed: int) -> None:
    """Write the videos that are not there, several at a time."""
    folder.mkdir(exist_ok=True)
    for path in {*folder.glob(f"*{SUFFIX}")} - {folder / f"{video.id}{SUFFIX}" for video in videos}:
        path.unlink()

    def write(video: Video) -> None:
        path = folder / f"{video.id}{SUFFIX}"
        if not path.exists():
            with atomic_writer(path) as file:
                write_video(file, draw(video, seed))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in progress_bar(pool.map(write, videos), "rendering", "video", total=len(videos)):
            pass


def _table(splits: Mapping[str, Sequence[Video]]) -> str:
    """The table of the sentences, for utils/add_captions.py."""
    file = io.StringIO()
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(["video", "sentence", "start", "end", "split"])
    for split, videos in splits.items():
        for video in videos:
            rows.writerows([video.id, own.sentence, own.start, own.end, split] for own in video.moments)
    return file.getvalue()


def _save_encoders(out: Path, seed: int) -> None:
    (out / CLIP).mkdir(parents=True, exist_ok=True)
    (out / I3D).parent.mkdir(exist_ok=True)
    save_motion_encoder(out / I3D)
    examples = [plan_video(f"example_{index:05d}", seed) for index in range(_EXAMPLES)]
    save_image_encoder(out / CLIP, [frame for video in examples for frame in draw(video, seed)[::_EVERY]], seed)
    save_text_encoder(out / TEXT, word_vectors(TEXT_WIDTH, seed), seed)


def _stamp(settings: Settings) -> dict[str, Any]:
    return {"generator": GENERATOR, "version": VERSION, **asdict(settings)}


def _digests(out: Path) -> dict[str, str]:
    """Path below `out` -> SHA-256 of every file of the demo."""
    roots = [out / name for name in _MADE]
    paths = [path for root in roots for path in ([root] if root.is_file() else sorted(root.rglob("*")))]
    return {
        str(path.relative_to(out)): sha256(path)
        for path in paths
        if path.is_file() and not path.name.startswith(".") and path != out / STAMP and path.suffix != ".cache"
    }


def _is_complete(out: Path, settings: Settings) -> bool:
    """Whether the demo with these settings is there and intact. What is not intact, or of another demo, is removed.

    InputError for a folder that holds anything else.
    """
    made = [out / name for name in _MADE if (out / name).exists()]
    stamp = read_json(out / STAMP) if (out / STAMP).exists() else None
    if made and (not isinstance(stamp, dict) or stamp.get("generator") != GENERATOR):
        raise InputError(f"{made[0]}: no demo ({out} has no {STAMP}), expected a new folder or a demo to replace")
    if not made or stamp is None:
        return False
    files = stamp.pop("files", None)
    if stamp != _stamp(settings):
        for path in made:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        return False
    if files is None:  # interrupted
        return False
    damaged = [name for name, digest in files.items() if not (out / name).is_file() or sha256(out / name) != digest]
    for name in damaged:
        (out / name).unlink(missing_ok=True)
    return not damaged


if __name__ == "__main__":
    run_command(main)
