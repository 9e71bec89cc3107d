"""What has to be done to an index for some videos to be in it as their features are now."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from method.serving.index.encoding import VideoEncoder, suffix
from method.serving.index.features import Longest, features_state, is_current, known_path, read_digests
from method.serving.index.manifest import FeatureState
from method.serving.index.snapshot import Snapshot


@dataclass(frozen=True)
class Plan:
    """An update of an index.

    missing, changed: videos to encode. gone: videos that their feature file no longer has, or has otherwise, and that
    were not asked for. skipped: videos that the user has removed. confirmed: the features that the videos of a segment
    have been compared with, by the name of the segment. longest: as of `VideoEncoder`.
    """

    missing: Sequence[str]
    changed: Sequence[str]
    gone: Sequence[str]
    skipped: Sequence[str]
    confirmed: Mapping[str, FeatureState]
    longest: Mapping[str, Longest]

    @property
    def encoded(self) -> list[str]:
        """The videos to encode."""
        return [*self.missing, *self.changed]

    @property
    def is_empty(self) -> bool:
        """Whether nothing has to be done."""
        return not (self.missing or self.changed or self.gone or self.confirmed)


def compare(snapshot: Snapshot, encoder: VideoEncoder, video_ids: Sequence[str], named: Collection[str] | None) -> Plan:
    """Compare an index with the features.

    Only if the feature file, by its size and times, is another one than a segment is known to agree with, are features
    read, those of all videos of that segment.

    Args:
        snapshot: of the index.
        encoder: whose features count.
        video_ids: that are searched.
        named: those of them to encode if necessary; None: all but those that the user has removed.
    """
    reader, entries, places = encoder.reader, snapshot.manifest.segments, snapshot.places
    excluded = set(snapshot.manifest.excluded).difference(named or ())
    asked = [video_id for video_id in video_ids if video_id not in excluded and (named is None or video_id in named)]
    longest = encoder.longest([video_id for video_id in video_ids if video_id not in excluded])
    there = [video_id for video_id in asked if video_id in places]
    used = {places[video_id][0] for video_id in there}
    outdated = {number for number in used if not is_current(entries[number].features, reader)}
    changed = {video_id for video_id in there if not snapshot.digest(video_id).endswith(suffix(longest.get(video_id)))}
    differing, unsure, gone = set[str](), set[int](), list[str]()
    suspects = [video_id for video_id, (number, _) in places.items() if number in outdated]
    for video_id, digest in zip(suspects, read_digests(reader, suspects, encoder.workers), strict=True):
        number = places[video_id][0]
        if digest and snapshot.digest(video_id).startswith(digest):
            continue
        differing.add(video_id)
        if known_path(entries[number].features, reader.videos.path):
            gone.append(video_id)
        elif video_id not in there:  # of another feature file
            unsure.add(number)
    changed |= differing.intersection(there)
    confirmed = {}
    for number in outdated - unsure:
        own = [video_id for video_id in suspects if places[video_id][0] == number and video_id not in differing]
        confirmed[entries[number].name] = features_state(reader, own)
    return Plan(
        [video_id for video_id in asked if video_id not in places],
        [video_id for video_id in there if video_id in changed],
        [video_id for video_id in gone if video_id not in changed],
        [video_id for video_id in video_ids if video_id in excluded],
        confirmed,
        longest,
    )
