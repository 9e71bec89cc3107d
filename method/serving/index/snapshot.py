"""A view of an index as it was when it was opened, whatever is written to it meanwhile."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from method.evaluation.corpus import Corpus
from method.evaluation.frame_embeddings import FrameEmbeddings, SelectedEmbeddings
from method.serving.index.manifest import NAME, Manifest, read_manifest
from method.serving.index.segment import EncodedVideos, Segment, UnusableIndex

Place = tuple[int, int]  # number of the segment, position in it


@dataclass(frozen=True)
class Snapshot:
    """An index that is open for reading.

    folder: of the index. manifest: when it was opened. segments: in the order of the manifest.
    """

    folder: Path
    manifest: Manifest
    segments: tuple[Segment, ...] = field(repr=False)

    @classmethod
    def open(cls, folder: Path) -> Snapshot | None:
        """Open an index; None if there is none.

        A writer deletes segments that the new manifest no longer has; if the old one was read, it is read again.

        Raises:
            UnusableIndex: for an index that is damaged or of another version.
        """
        generation = -1
        while (manifest := read_manifest(folder)) is not None:
            try:
                segments = tuple(Segment(folder / entry.name) for entry in manifest.segments)
            except FileNotFoundError as error:
                if manifest.generation == generation:
                    raise UnusableIndex(f"{error.filename}: missing, but {NAME} names it") from error
                generation = manifest.generation
                continue
            snapshot = cls(folder, manifest, segments)
            snapshot._check()
            return snapshot
        return None

    def _check(self) -> None:
        live = 0
        for entry, segment in zip(self.manifest.segments, self.segments, strict=True):
            if entry.size != segment.size:
                raise UnusableIndex(f"{segment.path}: {segment.size} bytes, expected {entry.size}")
            live += len(segment.video_ids) - len(entry.removed)
        if live != len(self.places):
            raise UnusableIndex(f"{self.folder}: the index has a video twice")

    @property
    def generation(self) -> int:
        """Counts the changes of the index."""
        return self.manifest.generation

    @cached_property
    def places(self) -> dict[str, Place]:
        """Where each video of the index is."""
        found: dict[str, Place] = {}
        for number, (entry, segment) in enumerate(zip(self.manifest.segments, self.segments, strict=True)):
            removed = set(entry.removed)
            for place, video_id in enumerate(segment.video_ids):
                if place not in removed:
                    found[video_id] = number, place
        return found

    @property
    def video_ids(self) -> list[str]:
        """The videos of the index, sorted."""
        return sorted(self.places)

    @property
    def durations(self) -> dict[str, float]:
        """Seconds of the videos whose feature file has them."""
        known = [segment.durations for segment in self.segments]
        found = {video_id: known[number][place] for video_id, (number, place) in self.places.items()}
        return {video_id: seconds for video_id, seconds in found.items() if seconds is not None}

    def digest(self, video_id: str) -> str:
        """The digest of the features that a video was encoded from."""
        number, place = self.places[video_id]
        return self.segments[number].digests[place]

    def verify(self, video_ids: Iterable[str] | None = None) -> None:
        """Compare the keys of all segments, or of those with these videos, with their checksums, each once.

        UnusableIndex naming a segment that is corrupt.
        """
        used = {
            number
            for number, _ in (self.places[video_id] for video_id in (self.places if video_ids is None else video_ids))
        }
        for number in sorted(used):
            self.segments[number].verify()

    def select(self, video_ids: Sequence[str]) -> Corpus:
        """These videos of the index, in this order, where they are mapped.

        The segments are not verified, see `verify`.
        """
        places = [self.places[video_id] for video_id in video_ids]
        return Corpus(list(video_ids), {name: SelectedEmbeddings(own, places) for name, own in self._sources().items()})

    def copy(self, video_ids: Sequence[str]) -> EncodedVideos:
        """These videos in memory, as they would be encoded now."""
        places = [self.places[video_id] for video_id in video_ids]
        digests = [self.segments[number].digests[place] for number, place in places]
        durations = [self.segments[number].durations[place] for number, place in places]
        keys = {name: FrameEmbeddings.gather(own, places, "cpu") for name, own in self._sources().items()}
        return EncodedVideos(Corpus(list(video_ids), keys), digests, durations)

    def _sources(self) -> dict[str, list[FrameEmbeddings]]:
        """The keys of all segments, by branch."""
        names = self.segments[0].corpus.frames if self.segments else {}
        return {name: [segment.corpus.frames[name] for segment in self.segments] for name in names}
