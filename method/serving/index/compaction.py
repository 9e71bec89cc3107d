"""Compaction: segments of an index are merged, without the videos that have been removed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from method.runtime.progress import progress_bar
from method.serving.index.manifest import SegmentEntry
from method.serving.index.segment import VIDEOS_PER_SEGMENT, write_segment
from method.serving.index.snapshot import Snapshot

_SMALL = 64  # videos
_MANY = 32  # segments


def has_many_small(snapshot: Snapshot) -> bool:
    """Whether an index has so many small segments that searching it takes noticeably longer."""
    return sum(len(own.video_ids) < _SMALL for own in snapshot.segments) > _MANY


def compacted(snapshot: Snapshot, only_small: bool = False) -> list[SegmentEntry] | None:
    """Write the segments that an index needs; None if they are as they should be.

    Full ones stay as they are, or with `only_small` all that are not small. UnusableIndex for a corrupt segment.
    """
    old = list(zip(snapshot.manifest.segments, snapshot.segments, strict=True))
    if only_small:
        kept = [entry for entry, own in old if len(own.video_ids) >= _SMALL]
    else:
        kept = [entry for entry, own in old if not entry.removed and len(own.video_ids) >= VIDEOS_PER_SEGMENT]
    rest = [entry for entry, _ in old if entry not in kept]
    groups = [list(own) for _, own in groupby(sorted(rest, key=_path), key=_path)]
    if all(len(own) == 1 and not own[0].removed for own in groups):
        return None
    return [*kept, *(entry for own in groups for entry in _merge(snapshot, own))]


def _path(entry: SegmentEntry) -> str:
    """The feature file of a segment."""
    return str(entry.features["path"])


def _merge(snapshot: Snapshot, entries: Sequence[SegmentEntry]) -> Iterator[SegmentEntry]:
    """The videos of segments of one feature file in as few segments as possible."""
    if len(entries) == 1 and not entries[0].removed:
        yield entries[0]
        return
    state = entries[0].features
    if any(entry.features != state for entry in entries):
        state = {**state, "files": {_path(entries[0]): {}}}  # to be compared with the features again
    names = {entry.name for entry in entries}
    numbers = {number for number, entry in enumerate(snapshot.manifest.segments) if entry.name in names}
    for number in numbers:
        snapshot.segments[number].verify()
    video_ids = [video_id for video_id in snapshot.video_ids if snapshot.places[video_id][0] in numbers]
    for start in progress_bar(range(0, len(video_ids), VIDEOS_PER_SEGMENT), "segments", "segment"):
        name, size = write_segment(snapshot.folder, snapshot.copy(video_ids[start : start + VIDEOS_PER_SEGMENT]))
        yield SegmentEntry(name, size, (), state)
