"""From a table of sentences to the captions, splits and moments of a dataset, checked against its video features."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import h5py

from method.data.captions import Caption
from method.data.features import ACTION_KEY, OBJECT_KEY, FeatureFile, open_hdf5
from method.data.provenance import DURATION
from method.evaluation.moments import TrueMoment
from method.runtime.errors import InputError, shown, summarize
from method.video.files import SUFFIXES
from utils.captions.table import Row, Split, refuse

log = logging.getLogger(__name__)

_STREAMS = (ACTION_KEY, OBJECT_KEY)
# Annotators round, and containers state durations that differ from their last frame.
_TOLERANCE = 1.0  # seconds


@dataclass(frozen=True)
class Videos:
    """The videos of a feature file that a table names.

    names: as the table has them -> id. widths: of the streams that the videos have, by key. longest: frames of the
    longest stream. durations: id -> seconds, where the file holds them.
    """

    names: Mapping[str, str]
    widths: Mapping[str, int]
    longest: int
    durations: Mapping[str, float]


@dataclass(frozen=True)
class Plan:
    """Captions of each split in the order of the table, and moments by caption id.

    drawn: number of videos in each split that the table did not assign; both 0 if it assigned all.
    """

    captions: Mapping[Split, Sequence[Caption]]
    moments: Mapping[str, TrueMoment]
    drawn: Mapping[Split, int]


def find_videos(path: Path, names: Iterable[str]) -> Videos:
    """Look up videos in a feature file by id, or by the name of the video file.

    Raises:
        InputError: for a file that is missing or no HDF5, and for streams that are missing, misshapen or of
            different widths.
    """
    found: dict[str, str] = {}
    durations: dict[str, float] = {}
    widths: dict[str, int] = {}
    try:
        with open_hdf5(path) as file:
            looked_up = {name: _look_up(file, name) for name in dict.fromkeys(names)}
            every = frozenset[str]().union(*(streams for _, streams in looked_up.values()))
            for name, (video_id, streams) in looked_up.items():
                if not streams or streams != every:  # no video, or one without a stream that others have
                    continue
                found[name] = video_id
                widths = widths or {key: _width(file, f"{video_id}/{key}") for key in _STREAMS if key in every}
                seconds = file[video_id].attrs.get(DURATION)
                if seconds is not None and float(seconds) > 0:
                    durations[video_id] = float(seconds)
    except (OSError, RuntimeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    features, ids = FeatureFile(path), dict.fromkeys(found.values())
    rows = [features.check([f"{own}/{key}" for own in ids], width) for key, width in widths.items()]
    longest = max((count for counts in rows for count in counts.values()), default=0)
    return Videos(found, widths, longest, durations)


def _look_up(file: Any, name: str) -> tuple[str, frozenset[str]]:
    """Id and streams of a video by its id, or by the name of its file; no streams if there is no such video."""
    path = PurePosixPath(name)
    candidates = [path, path.with_suffix("")] if path.suffix.lower() in SUFFIXES else [path]
    for video_id in map(str, candidates):
        streams = {key for key in _STREAMS if isinstance(file.get(f"{video_id}/{key}"), h5py.Dataset)}
        if streams and not path.is_absolute() and path.name:
            return video_id, frozenset(streams)
    return name, frozenset()


def _width(file: Any, name: str) -> int:
    shape = file[name].shape
    return int(shape[-1]) if shape else 0


def make_plan(
    table: Path, rows: Sequence[Row], videos: Videos, features: Path, test_fraction: float, skip_missing: bool
) -> Plan:
    """The captions, splits and moments of a table.

    Videos that the table does not assign to a split are divided by a digest of their ids, so that each stays in its
    split when others are added.

    Args:
        table: path of the table, for messages.
        rows: of the table.
        videos: that are in the features.
        features: path of the feature file, for messages.
        test_fraction: of the videos without a split that are evaluated, about.
        skip_missing: whether rows of videos without features are left out with a warning instead of refused.

    Raises:
        InputError: for videos without features, ids that a caption file cannot hold, moments outside their video, a
            video in two splits, and a split without videos.
    """
    missing = [row for row in rows if row.video not in videos.names]
    if missing and (not skip_missing or len(missing) == len(rows)):
        refuse(table, [f"line {row.line}: no video {shown(row.video)} in {features}" for row in missing])
    if missing:
        left_out = list(dict.fromkeys(shown(row.video) for row in missing))
        named = f"{len(left_out)} videos are not in {features}, and their {len(missing)} sentences are left out"
        log.warning("%s: %s: %s", table, named, summarize(left_out))
    rows = [row for row in rows if row.video in videos.names]
    refuse(table, [f"line {row.line}: {problem}" for row in rows if (problem := _problem(row, videos))])
    splits, drawn = _splits(table, rows, videos, test_fraction)
    captions: dict[Split, list[Caption]] = {"train": [], "test": []}
    moments: dict[str, TrueMoment] = {}
    counts: dict[str, int] = {}
    for row in rows:
        video_id = videos.names[row.video]
        number = counts[video_id] = counts.get(video_id, -1) + 1
        caption = Caption(f"{video_id}#enc#{number}", video_id, row.sentence)
        captions[splits[video_id]].append(caption)
        if row.start is not None and row.end is not None:
            duration = videos.durations.get(video_id, row.duration)
            assert duration is not None
            moments[caption.id] = TrueMoment(row.start, min(row.end, duration), duration)
    return Plan(captions, moments, drawn)


def _problem(row: Row, videos: Videos) -> str | None:
    """What is wrong with a row, if anything."""
    video_id = videos.names[row.video]
    if not {"#", "\r", "\n"}.isdisjoint(video_id) or video_id != video_id.strip():
        return (
            f"the id of video {shown(video_id)} has a '#', a line break or a blank at an end, which a caption file "
            "cannot hold; rename the video and extract its features again"
        )
    if row.end is None or row.start is None:
        return None
    duration = videos.durations.get(video_id, row.duration)
    if duration is None:
        return f"no duration of video {shown(video_id)}: add a column duration, or leave start and end out"
    if row.start >= duration or row.end > duration + _TOLERANCE:
        return f"start {row.start:g}, end {row.end:g}: video {shown(video_id)} is {duration:g} seconds long"
    return None


def _splits(
    table: Path, rows: Sequence[Row], videos: Videos, test_fraction: float
) -> tuple[dict[str, Split], dict[Split, int]]:
    """The split of each video, and the number of drawn videos in each."""
    assigned: dict[str, tuple[Split, int]] = {}
    problems = []
    for row in rows:
        video_id = videos.names[row.video]
        if row.split is not None:
            split, line = assigned.setdefault(video_id, (row.split, row.line))
            if split != row.split:
                problems.append(
                    f"line {row.line}: video {shown(video_id)} is in split {row.split}, and in {split} on line {line}"
                )
    refuse(table, problems)
    splits = {video_id: split for video_id, (split, _) in assigned.items()}
    drawn = draw_split({videos.names[row.video] for row in rows} - splits.keys(), test_fraction, {*splits.values()})
    splits |= drawn
    for split in ("train", "test"):
        if split not in splits.values():
            raise InputError(f"{table}: no video in split {split}, expected at least one in each of train and test")
    counts = [*drawn.values()]
    return splits, {"train": counts.count("train"), "test": counts.count("test")}


def draw_split(video_ids: Iterable[str], test_fraction: float, others: Iterable[Split] = ()) -> dict[str, Split]:
    """Divide videos into training and evaluated ones by a digest of their ids.

    At least one video gets into each split that none of the others is in, if there are enough.

    Args:
        video_ids: to divide, in any order.
        test_fraction: of the videos that are evaluated, about.
        others: the splits of further videos.
    """
    places = {own: hashlib.blake2b(own.encode(), digest_size=8).digest() for own in video_ids}
    ordered = sorted(places, key=lambda own: places[own])
    splits: dict[str, Split] = {
        own: "test" if int.from_bytes(places[own], "big") < test_fraction * 2**64 else "train" for own in ordered
    }
    if ordered and not {"test"} & {*others, *splits.values()}:
        splits[ordered[0]] = "test"
    if ordered and not {"train"} & {*others, *splits.values()}:
        splits[ordered[-1]] = "train"
    return splits
