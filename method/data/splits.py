"""The splits of a dataset: captions, and checks of their features before the first step."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from method.data.captions import Caption, group_by_video, read_captions
from method.data.dataset import TOKENS, FeatureReader
from method.runtime.errors import InputError, summarize
from method.runtime.progress import progress_bar

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Split:
    """The captions of a split, and the lengths of its features as stored.

    frames: branch -> video id -> frames. tokens: caption id -> tokens.
    """

    name: str
    captions: list[Caption]
    frames: dict[str, dict[str, int]]
    tokens: dict[str, int]

    @property
    def video_ids(self) -> list[str]:
        """Videos in the order of their first captions."""
        return list(group_by_video(self.captions))


def check_split(name: str, path: Path, reader: FeatureReader) -> Split:
    """Read the captions of a split and check that every video and caption has features of the right width.

    Reads only headers of the feature files: seconds for a hundred thousand captions.
    """
    captions = read_captions(path)
    split = Split(name, captions, {}, {})
    tokens = reader.texts.check([caption.id for caption in captions], reader.query_width)
    frames = {}
    for branch, (key, width) in reader.streams.items():
        rows = reader.videos.check([f"{video_id}/{key}" for video_id in split.video_ids], width)
        frames[branch] = {name.rsplit("/", 1)[0]: count for name, count in rows.items()}
    return Split(name, captions, frames, tokens)


def check_content(split: Split, reader: FeatureReader) -> str:
    """Warn of arrays that are all zeros, as an interrupted extraction leaves them; returns a digest of the features.

    Only the middle row of every array is read, and more of an array where that row is zero. The digest depends on
    content alone, not on files, so that a copy of a dataset has the same.

    Raises:
        InputError: if all arrays of a stream, or all token features, are zeros.
    """
    digest = hashlib.sha256()
    for key, source in reader.hdf5_sources.items():
        ids = [caption.id for caption in split.captions] if key == TOKENS else split.video_ids
        zeros = []
        for item_id in progress_bar(ids, f"{split.name}: sampling {key}", "item"):
            name = source.names.format(item_id)
            middle = source.file.read_middle(name, source.width)
            digest.update(middle.tobytes())
            if not middle.any() and not source.file.read(name, source.width).any():
                zeros.append(name)
        if zeros:
            what = f"{source.file.path}: {len(zeros)} of {len(ids)} {key} arrays of the {split.name} are all zeros"
            if len(zeros) == len(ids):
                raise InputError(f"{what}, expected features")
            log.warning("%s, the first is %r; was feature extraction interrupted?", what, zeros[0])
    return digest.hexdigest()


def sampled_lengths(reader: FeatureReader, splits: Iterable[Split]) -> dict[str, dict[str, int]]:
    """Length of every item of the splits after sampling, by the key of its source."""
    lengths: dict[str, dict[str, int]] = {key: {} for key in reader.hdf5_sources}
    for split in splits:
        for branch, (key, _) in reader.streams.items():
            lengths[key] |= {
                video_id: min(split.frames[branch][video_id], reader.max_frames) for video_id in split.video_ids
            }
        lengths[TOKENS] |= {caption.id: min(split.tokens[caption.id], reader.max_tokens) for caption in split.captions}
    return lengths


def warn_train_test_overlap(training: Split, evaluated: Split) -> None:
    """Warn if a video is in both splits."""
    both = set(training.video_ids).intersection(evaluated.video_ids)
    if both:
        shown = summarize([repr(video_id) for video_id in training.video_ids if video_id in both])
        log.warning("%d videos are in both %s and %s: %s", len(both), training.name, evaluated.name, shown)


def describe(split: Split) -> str:
    """One line on the size of a split."""
    return f"{split.name}: {len(split.video_ids)} videos, {len(split.captions)} captions"


def split_holdout(captions: Sequence[Caption], fraction: float, seed: int) -> tuple[list[Caption], list[Caption]]:
    """Split captions into those of training and of held-out videos, in their order.

    Args:
        captions: of all training videos.
        fraction: of the videos to hold out; 0 holds out none.
        seed: of the random choice.

    Raises:
        InputError: if one side has no video.
    """
    videos = list(group_by_video(captions))
    count = round(fraction * len(videos))
    if fraction and not 0 < count < len(videos):
        raise InputError(f"--holdout_fraction {fraction}: holds out {count} of {len(videos)} training videos")
    held_out = {videos[index] for index in np.random.default_rng([seed, 0x401D]).permutation(len(videos))[:count]}
    training = [caption for caption in captions if caption.video_id not in held_out]
    return training, [caption for caption in captions if caption.video_id in held_out]


@dataclass(frozen=True)
class Splits:
    """The splits of a training run.

    selecting: split on which the epoch is selected. training_file: all captions of the training file.
    """

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
    """Read and check both caption files, and hold out training videos if requested.

    Args:
        train_captions: caption file to train on.
        test_captions: caption file to report on.
        reader: of the features of both.
        holdout_fraction: of the training videos, to select the epoch on; with 0 the reported split selects it.
        seed: of the choice of held-out videos.
        max_videos: train on the first so many only.
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
