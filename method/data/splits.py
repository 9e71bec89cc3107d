"""The splits of a dataset, and the feature files they need, checked before the first step."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from method.data.captions import Caption, group_by_video, read_captions
from method.data.dataset import TOKENS, FeatureReader, split_holdout
from method.data.features import FeatureFile
from method.runtime.errors import InputError, summarize

log = logging.getLogger(__name__)

RELEASED = ("activitynet", "charades", "tvr")  # what utils/download_data.py fetches
DATA_FILES = ("video_feat_path", "text_feat_path", "caption_train_txt", "caption_test_txt")


class ModelInputs(Protocol):
    """What a model reads of the feature files; an `Architecture` is one."""

    @property
    def streams(self) -> Mapping[str, tuple[str, int]]:
        """For each branch the name of its feature stream and its width."""

    @property
    def query_width(self) -> int:
        """Width of the token features."""

    @property
    def max_frames(self) -> int:
        """Frames of a video after sampling, at most."""

    @property
    def max_words(self) -> int:
        """Tokens of a caption, at most."""


@dataclass(frozen=True)
class Split:
    """Captions of one split and, from the headers of the files, how long everything is.

    frames: branch -> rows of each video's stream as stored. tokens: rows of each caption's token features as stored.
    """

    name: str
    captions: list[Caption]
    frames: dict[str, dict[str, int]]
    tokens: dict[str, int]

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


def open_features(
    paths: Mapping[str, Path | None],
    dataset: str,
    inputs: ModelInputs,
    root: Path,
    needed: Sequence[str] = DATA_FILES,
) -> FeatureReader:
    """Open the feature files of a dataset for a model.

    Args:
        paths: of `DATA_FILES`, by flag; may hold more.
        dataset: its name, for messages.
        inputs: what the model reads.
        root: the folder that holds `dataset/`, for messages.
        needed: the files that have to exist.

    Raises:
        InputError: naming every missing file of `needed`.
    """
    check_files({name: paths[name] for name in needed}, dataset, root)
    videos, texts = (paths[name] for name in ("video_feat_path", "text_feat_path"))
    assert videos is not None
    assert texts is not None
    files = FeatureFile(videos), FeatureFile(texts)
    return FeatureReader(*files, inputs.streams, inputs.query_width, inputs.max_frames, inputs.max_words)


def check_split(name: str, path: Path, reader: FeatureReader) -> Split:
    """Read one split's captions and check that every video and caption has features of the right width.

    Only the headers of the feature files are read, so that this takes seconds for a hundred thousand captions.
    """
    captions = read_captions(path)
    split = Split(name, captions, {}, {})
    tokens = reader.texts.check([caption.id for caption in captions], reader.query_width)
    frames = {}
    for branch, (key, width) in reader.streams.items():
        rows = reader.videos.check([f"{video_id}/{key}" for video_id in split.video_ids], width)
        frames[branch] = {name.rsplit("/", 1)[0]: count for name, count in rows.items()}
    return Split(name, captions, frames, tokens)


def sampled_lengths(reader: FeatureReader, splits: Iterable[Split]) -> dict[str, dict[str, int]]:
    """For each table, by the name of its stream or TOKENS, the rows of every item of the splits that the model sees."""
    seen: dict[str, dict[str, int]] = {key: {} for key in reader.hdf5_sources}
    for split in splits:
        for branch, (key, _) in reader.streams.items():
            seen[key] |= {
                video_id: min(split.frames[branch][video_id], reader.max_frames) for video_id in split.video_ids
            }
        seen[TOKENS] |= {caption.id: min(split.tokens[caption.id], reader.max_tokens) for caption in split.captions}
    return seen


def warn_train_test_overlap(first: Split, second: Split) -> None:
    """Log a warning when a video is in both splits: what was trained on would be reported on."""
    evaluated = set(second.video_ids)
    shared = [repr(video_id) for video_id in first.video_ids if video_id in evaluated]
    if shared:
        log.warning("%d videos are in both %s and %s: %s", len(shared), first.name, second.name, summarize(shared))


def describe(split: Split) -> str:
    """One line on the size of a split."""
    return f"{split.name}: {len(split.video_ids)} videos, {len(split.captions)} captions"


@dataclass(frozen=True)
class Splits:
    """The splits to train on, to select the epoch by and to report, and all captions of the training file."""

    training: Split
    selecting: Split
    reported: Split
    training_file: list[Caption]


def load_splits(
    train_captions: Path,
    test_captions: Path,
    reader: FeatureReader,
    *,
    holdout_fraction: float = 0.0,
    seed: int = 0,
    max_videos: int | None = None,
) -> Splits:
    """Check the caption files of both splits and divide the training videos.

    Args:
        train_captions: caption file to train on.
        test_captions: caption file to report.
        reader: of the features that every caption and video needs.
        holdout_fraction: of the training videos, held out to select the epoch; 0 selects on the reported split.
        seed: of the draw of held-out videos.
        max_videos: train on the first of them only.
    """
    whole = check_split("training split", train_captions, reader)
    reported = check_split("evaluated split", test_captions, reader)
    warn_train_test_overlap(whole, reported)
    training, selecting = whole, reported
    if max_videos is not None:
        few = set(whole.video_ids[:max_videos])
        training = replace(whole, captions=[caption for caption in whole.captions if caption.video_id in few])
    if holdout_fraction:
        kept, held_out = split_holdout(training.captions, holdout_fraction, seed)
        training = replace(whole, captions=kept)
        selecting = replace(whole, name="held-out training videos", captions=held_out)
    for split in {split.name: split for split in (training, selecting, reported)}.values():
        log.info(describe(split))
    log.info("the epoch is selected on the %s", selecting.name)
    return Splits(training, selecting, reported, whole.captions)
