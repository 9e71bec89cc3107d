"""Everything that a run will need of its files, checked before the first step."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from method.data.captions import Caption, group_by_video, read_captions
from method.data.dataset import TOKENS, FeatureReader
from method.runtime.errors import InputError, summarize

log = logging.getLogger(__name__)

RELEASED = ("activitynet", "charades", "tvr")  # what utils/download_data.py fetches


@dataclass(frozen=True)
class Split:
    """Captions of one split and, from the headers of the files, how long everything is.

    frames: branch -> rows of each video's stream as stored. words: rows of each caption's token features as stored.
    """

    name: str
    captions: list[Caption]
    frames: dict[str, dict[str, int]]
    words: dict[str, int]

    @property
    def video_ids(self) -> list[str]:
        """Videos in the order in which the caption file first mentions them."""
        return list(group_by_video(self.captions))


def check_files(paths: Mapping[str, Path | None], dataset: str, root: Path) -> None:
    """InputError naming every file of a dataset below `root` that is missing, where it belongs and how to get it."""
    unnamed = [f"--{flag}" for flag, path in paths.items() if path is None]
    if unnamed:
        raise InputError(
            f"{', '.join(unnamed)}: dataset {dataset} names no such file in its YAML file, nor does a flag"
        )
    missing = {flag: path for flag, path in paths.items() if path is not None and not path.exists()}
    if missing:
        named = [f"--{flag}: no {path}" for flag, path in missing.items()]
        raise InputError(
            f"the files of dataset {dataset} are not all there: {summarize(named, shown=len(named))}; "
            f"{_remedy(missing.values(), dataset, root)}"
        )


def _remedy(missing: Iterable[Path], dataset: str, root: Path) -> str:
    """How to get files: by a command only if it would put them where they are looked for."""
    if all(path.is_relative_to(root / "dataset" / f"{dataset}_i3d") for path in missing):
        if dataset in RELEASED:
            place = "" if root == Path.cwd() else f" --root_path {shlex.quote(str(root))}"
            return f"put them there, or fetch the released ones with: python utils/download_data.py {dataset}{place}"
        if dataset == "demo":
            command = f"python utils/make_demo_dataset.py --out {shlex.quote(str(root))} --tiny_roberta"
            return f"write the demo with: {command}"
    return "put them there, or name other files by these flags or in the dataset's YAML file"


def check_split(name: str, path: Path, reader: FeatureReader) -> Split:
    """Read one split's captions and check that every video and caption has features of the right width.

    Only the headers of the feature files are read, so that this takes seconds for a hundred thousand captions.
    """
    captions = read_captions(path)
    split = Split(name, captions, {}, {})
    words = reader.texts.check([caption.id for caption in captions], reader.query_width)
    frames = {}
    for branch, (key, width) in reader.streams.items():
        rows = reader.videos.check([f"{video_id}/{key}" for video_id in split.video_ids], width)
        frames[branch] = {name.rsplit("/", 1)[0]: count for name, count in rows.items()}
    return Split(name, captions, frames, words)


def rows_seen(reader: FeatureReader, splits: Iterable[Split]) -> dict[str, dict[str, int]]:
    """For each table, by the name of its stream or TOKENS, the rows of every item of the splits that the model sees."""
    seen: dict[str, dict[str, int]] = {key: {} for key in reader.stored}
    for split in splits:
        for branch, (key, _) in reader.streams.items():
            seen[key] |= {
                video_id: min(split.frames[branch][video_id], reader.max_frames) for video_id in split.video_ids
            }
        seen[TOKENS] |= {caption.id: min(split.words[caption.id], reader.max_words) for caption in split.captions}
    return seen


def warn_of_shared_videos(first: Split, second: Split) -> None:
    """Log a warning when a video is in both splits: what was trained on would be reported on."""
    evaluated = set(second.video_ids)
    shared = [repr(video_id) for video_id in first.video_ids if video_id in evaluated]
    if shared:
        log.warning("%d videos are in both %s and %s: %s", len(shared), first.name, second.name, summarize(shared))


def describe(split: Split) -> str:
    """One line on the size of a split."""
    return f"{split.name}: {len(split.video_ids)} videos, {len(split.captions)} captions"
