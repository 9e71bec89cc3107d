"""The index of a model: the frame embeddings of videos, each encoded once, in a folder that grows.

    manifest.json      which segments there are, and which of their videos have been removed
    segment-*.keys     embeddings of the videos that were added together; never changed
    .lock              held by the process that writes

A change writes segments first and then replaces the manifest, so that a kill at any moment leaves the index as it was
or as it is to be. Readers keep what they have opened. Files that no manifest names are removed by the next writer.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from method.evaluation.sharding import all_gather_items, shard
from method.runtime.disk import format_bytes
from method.runtime.errors import InputError
from method.runtime.files import remove_partial_files
from method.runtime.locks import exclusive_lock
from method.runtime.progress import poll
from method.serving.index.compaction import compacted, has_many_small
from method.serving.index.earlier import remove_earlier
from method.serving.index.encoding import VideoEncoder
from method.serving.index.manifest import MadeFrom, Manifest, SegmentEntry, read_manifest, write_manifest
from method.serving.index.plan import Plan, compare
from method.serving.index.segment import PATTERN, VIDEOS_PER_SEGMENT, UnusableIndex, write_segment
from method.serving.index.snapshot import Snapshot

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Index:
    """An index in a folder, and what it has to be made from."""

    folder: Path
    made_from: MadeFrom

    def open(self) -> Snapshot | None:
        """Read the index; None if there is none. InputError for a damaged one, or one made from something else."""
        snapshot = Snapshot.open(self.folder)
        if snapshot is not None:
            self._expect_own(snapshot.manifest)
        return snapshot

    def _expect_own(self, manifest: Manifest) -> None:
        found, expected = manifest.made_from, self.made_from
        changed = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
        if changed:
            raise UnusableIndex(f"{self.folder}: the index was built from another {', another '.join(changed)}")

    def update(
        self,
        encoder: VideoEncoder,
        video_ids: Sequence[str],
        *,
        named: Collection[str] | None = None,
        rebuild: bool = False,
    ) -> Snapshot:
        """Encode those of these videos that are missing or whose features have changed, and open the index.

        Of several processes that call this at the same time, the others wait for the first; the ranks of a process
        group share the work.

        Args:
            encoder: of videos.
            video_ids: that are searched, in their order.
            named: those of them to encode if necessary; None: all but those that the user has removed.
            rebuild: make a new index.

        Raises:
            InputError: as `open`; for features that are missing or broken, or embeddings that are not finite.
        """
        processes = encoder.processes
        if processes.count > 1 or rebuild or (snapshot := self.open()) is None:
            return self._update(encoder, video_ids, named, rebuild)
        plan = compare(snapshot, encoder, video_ids, named)
        if plan.is_empty:
            return snapshot
        try:
            return self._update(encoder, video_ids, named, rebuild)
        except OSError as error:
            if plan.encoded:
                raise
            log.info("%s: not written (%s), so that features are compared each time", self.folder, error.strerror)
            return snapshot

    def _update(
        self, encoder: VideoEncoder, video_ids: Sequence[str], named: Collection[str] | None, rebuild: bool
    ) -> Snapshot:
        processes = encoder.processes
        snapshot = planned = None
        with self._writing(processes.is_first):
            with processes.raise_on_all():
                if processes.is_first:
                    snapshot = self._start(rebuild)
                    planned = compare(snapshot, encoder, video_ids, named)
            plan = processes.broadcast(planned)
            assert plan is not None
            self._apply(snapshot, plan, encoder)
            with processes.raise_on_all():
                merged = self._merge_small() if processes.is_first else None
        with processes.raise_on_all():
            return merged or self._require()

    def plan(
        self,
        encoder: VideoEncoder,
        video_ids: Sequence[str],
        named: Collection[str] | None = None,
        rebuild: bool = False,
    ) -> Plan:
        """What `update` would do."""
        return compare(self._start(rebuild), encoder, video_ids, named)

    def remove(self, video_ids: Sequence[str]) -> Snapshot:
        """Take videos out of the index; they are not added again unless they are named.

        InputError for an id that the index does not have.
        """
        with self._writing():
            snapshot = self._require()
            if unknown := [video_id for video_id in video_ids if video_id not in snapshot.places]:
                raise InputError(f"{self.folder}: the index has no video {unknown[0]!r}")
            manifest, removed = snapshot.manifest, dict.fromkeys(video_ids)
            excluded = tuple(dict.fromkeys([*manifest.excluded, *removed]))
            self._commit(manifest.changed(segments=_without(snapshot, manifest, removed), excluded=excluded))
            return self._require()

    def compact(self) -> Snapshot:
        """Rewrite small segments and those with removed videos; changes no answer. UnusableIndex as `open`."""
        with self._writing():
            return self._compact(self._require())

    def _compact(self, snapshot: Snapshot, only_small: bool = False) -> Snapshot:
        entries = compacted(snapshot, only_small)
        if entries is None:
            return snapshot
        self._commit(snapshot.manifest.changed(segments=tuple(entries)))
        return self._require()

    def _merge_small(self) -> Snapshot:
        """Merge small segments if there are many, after one video was added at a time; changes no answer."""
        snapshot = self._require()
        if not has_many_small(snapshot):
            return snapshot
        try:
            return self._compact(snapshot, only_small=True)
        except (OSError, UnusableIndex) as error:  # what was added is there
            log.warning("%s: small segments are not merged: %s", self.folder, error)
            return snapshot

    def calibrate(self, entries: Mapping[str, Any]) -> None:
        """Store entries of a table beside the index, as JSON values; others that it has are kept."""
        with self._writing():
            manifest = self._require().manifest
            self._commit(manifest.changed(calibration={**(manifest.calibration or {}), **entries}))

    def _require(self) -> Snapshot:
        snapshot = self.open()
        if snapshot is None:
            raise InputError(f"{self.folder}: no index there")
        return snapshot

    @contextlib.contextmanager
    def _writing(self, is_writer: bool = True) -> Iterator[None]:
        """Hold the lock of the folder, and remove what killed writers left there."""
        if not is_writer:
            yield
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        busy = f"waiting for another process that is writing the index {self.folder}"
        with exclusive_lock(self.folder / ".lock", busy, poll=poll):
            remove_partial_files(self.folder)
            with contextlib.suppress(InputError):
                if (manifest := read_manifest(self.folder)) is not None:
                    self._clean(manifest)
            yield

    def _start(self, rebuild: bool) -> Snapshot:
        """What the index holds before an update, nothing if it is rebuilt or there is none."""
        snapshot = None if rebuild else self.open()
        if snapshot is not None:
            return snapshot
        old = None
        with contextlib.suppress(InputError):  # an index that is rebuilt may be unreadable
            old = read_manifest(self.folder)
        generation, excluded = (old.generation, old.excluded) if old else (0, ())
        return Snapshot(self.folder, Manifest(generation, self.made_from, excluded=excluded), ())

    def _apply(self, snapshot: Snapshot | None, plan: Plan, encoder: VideoEncoder) -> None:
        """Encode in rounds, each of which is kept once it is done. The first process has the snapshot."""
        processes, encoded = encoder.processes, plan.encoded
        manifest = snapshot.manifest if snapshot else None
        rounds = range(0, max(len(encoded), 1), VIDEOS_PER_SEGMENT * processes.count)
        for start in rounds:
            video_ids = encoded[start : start + rounds.step]
            with processes.raise_on_all():
                own = self._encode(encoder, video_ids[shard(len(video_ids), processes)], plan)
            entries = all_gather_items(own, processes)
            with processes.raise_on_all():  # no process goes on before the round is kept
                if snapshot is not None and manifest is not None:
                    manifest = _after_round(snapshot, manifest, plan, video_ids, entries, start == rounds[-1])
                    self._commit(manifest)
        if manifest is not None:
            _report(self.folder, manifest, plan)

    def _encode(self, encoder: VideoEncoder, video_ids: Sequence[str], plan: Plan) -> list[SegmentEntry]:
        """The segment of these videos, if there are any."""
        if not video_ids:
            return []
        videos, features = encoder.encode(video_ids, plan.longest)
        name, size = write_segment(self.folder, videos)
        return [SegmentEntry(name, size, (), features)]

    def _commit(self, manifest: Manifest) -> None:
        write_manifest(self.folder, manifest)
        self._clean(manifest)
        remove_earlier(self.folder)

    def _clean(self, manifest: Manifest) -> None:
        """Delete what is not part of the index: readers keep the segments that they have opened."""
        names = {entry.name for entry in manifest.segments}
        for path in self.folder.glob(PATTERN):
            if path.name not in names:
                path.unlink(missing_ok=True)


def _after_round(
    snapshot: Snapshot,
    manifest: Manifest,
    plan: Plan,
    video_ids: Sequence[str],
    entries: Sequence[SegmentEntry],
    is_last: bool,
) -> Manifest:
    """The manifest once these videos of a plan are in these segments; `snapshot` was before all rounds."""
    # Last, because a segment agrees with the features only without the videos that have changed.
    gone, confirmed = (plan.gone, plan.confirmed) if is_last else ((), {})
    segments = [*_without(snapshot, manifest, [*video_ids, *gone]), *entries]
    segments = [replace(own, features=confirmed.get(own.name, own.features)) for own in segments]
    added = set(video_ids)
    return replace(
        manifest,
        generation=manifest.generation + bool(video_ids or gone or not snapshot.segments),
        segments=tuple(segments),
        excluded=tuple(video_id for video_id in manifest.excluded if video_id not in added),
    )


def _without(snapshot: Snapshot, manifest: Manifest, video_ids: Iterable[str]) -> tuple[SegmentEntry, ...]:
    """The segments of a manifest without these videos, as far as a snapshot before it has them."""
    positions: dict[str, set[int]] = {}
    for number, position in (snapshot.places[video_id] for video_id in video_ids if video_id in snapshot.places):
        positions.setdefault(snapshot.manifest.segments[number].name, set()).add(position)
    sizes = {own.path.name: len(own.video_ids) for own in snapshot.segments}
    left = (entry.without(positions.get(entry.name, set())) for entry in manifest.segments)
    return tuple(entry for entry in left if len(entry.removed) != sizes.get(entry.name))


def _report(folder: Path, manifest: Manifest, plan: Plan) -> None:
    size = format_bytes(sum(entry.size for entry in manifest.segments))
    parts = {"added": plan.missing, "replaced": plan.changed, "gone": plan.gone}
    done = ", ".join(f"{len(own)} {what}" for what, own in parts.items() if own)
    log.info("index in %s: %s; %s", folder, done or "nothing changed", size)
