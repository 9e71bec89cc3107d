"""Extraction of the features of a folder of videos: which videos need it, and what cannot be encoded."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from method.data.provenance import Source
from method.runtime.errors import InputError
from method.runtime.files import sha256
from method.runtime.processes import SINGLE_PROCESS, Processes
from method.runtime.progress import progress_bar
from method.video.decode import VideoError, find_videos
from method.video.encode import VideoEncoders
from method.video.feature_store import FeatureStore, Streams, VideoFeatures

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 60.0


@dataclass
class Summary:
    """What an extraction did: videos in the folder, encoded by this process, and those that failed, with the reason."""

    videos: int = 0
    encoded: int = 0
    failed: dict[str, str] = field(default_factory=dict)


def extract(
    folder: Path, store: FeatureStore, encoders: VideoEncoders, processes: Processes = SINGLE_PROCESS
) -> Summary:
    """Bring a store up to date with the videos of a folder.

    Every process that works on a store returns when all of its videos are done, whichever process did them.

    Args:
        folder: searched for videos with everything below.
        store: whose features the encoders make.
        encoders: of new and changed videos.
        processes: ranks that share the work; the first one writes the feature file.

    Raises:
        InputError: for a folder without videos, or one with none of those whose features the store has.
        OSError: for a full disk; what was done before is kept.
    """
    with processes.raise_on_all():
        videos = find_videos(folder)
        if not videos:
            raise InputError(f"{folder}: no videos in this folder or below")
        _expect_same_collection(folder, videos, store)
    work = _Extraction(videos, store, encoders)
    pending = work.pending()
    log.info("%d videos in %s, %d to extract", len(videos), folder, len(pending))
    own = pending[processes.rank :: processes.count]
    others = [video_id for rank in range(processes.count) if rank != processes.rank
              for video_id in pending[rank :: processes.count]]  # fmt: skip
    try:
        with processes.raise_on_all():  # until all are done, so that nobody holds a lock below
            work.run([*own, *others])
    except (KeyboardInterrupt, SystemExit):
        log.info("stopped; what is extracted is kept, and the same command continues")
        raise
    with processes.raise_on_all():
        if processes.is_first:
            found = find_videos(folder)  # again: the folder may have changed meanwhile
            store.merge(found)
            lost = [video_id for video_id in videos if video_id in found and video_id not in store.sources()]
            work.summary.failed |= {
                video_id: "changed while it was extracted" for video_id in lost if video_id not in work.summary.failed
            }
    return work.summary


def _expect_same_collection(folder: Path, videos: Mapping[str, Path], store: FeatureStore) -> None:
    """InputError if the features are those of other videos, which would all be dropped: a mistaken name or folder."""
    known = store.sources()
    sizes = {video.stat().st_size for video in videos.values()}
    if known and not any(video_id in videos or source.size in sizes for video_id, source in known.items()):
        example = next(iter(known))
        raise InputError(
            f"{store.path}: holds features of {len(known)} other videos, such as {example!r}, and {folder} has none "
            "of them; choose another dataset for this folder, or delete the file"
        )


class _Extraction:
    """The work of one process."""

    def __init__(self, videos: Mapping[str, Path], store: FeatureStore, encoders: VideoEncoders) -> None:
        self._videos, self._store, self._encoders = videos, store, encoders
        self.summary = Summary(videos=len(videos))
        self._reported = self._started = time.monotonic()

    def pending(self) -> list[str]:
        """The videos without features, or with those of another content."""
        ids = progress_bar(self._videos, "comparing with the features", "video")
        return [video_id for video_id in ids if not self._store.has(video_id, self._videos[video_id])]

    def run(self, video_ids: Sequence[str]) -> None:
        """Extract these videos, except those that another process has done meanwhile."""
        busy = []
        bar = progress_bar(video_ids, "extracting", "video")
        for done, video_id in enumerate(bar):
            if not self._extract(video_id, wait=False):
                busy.append(video_id)
            self._report(bar, done + 1, len(video_ids))
        for video_id in busy:
            self._extract(video_id, wait=True)

    def _extract(self, video_id: str, wait: bool) -> bool:
        """Extract a video unless that is done; False if another process is doing it."""
        store, video = self._store, self._videos[video_id]
        with store.lock(video_id, wait) as is_held:
            if not is_held:
                return False
            try:
                if store.has(video_id, video):
                    return True
                if reason := store.failure(video_id):
                    self.summary.failed[video_id] = reason
                    return True
                features = self._features(video_id, video)
            except (VideoError, OSError) as error:
                reason = error.reason if isinstance(error, VideoError) else error.strerror or str(error)
                self.summary.failed[video_id] = reason
                store.add_failure(video_id, reason)
                return True
            store.add(video_id, features)
        return True

    def _features(self, video_id: str, video: Path) -> VideoFeatures:
        """The features of a video, encoded unless the store has those of the same content. VideoError, OSError."""
        _check_id(video_id, self._store.streams)
        before = video.stat()
        source = Source(before.st_size, before.st_mtime_ns, sha256(video))
        known = self._store.find_content(source.size, source.sha256)
        if known is not None:
            return VideoFeatures(known.streams, source, known.duration)
        streams = self._encoders.encode(video)
        _check(streams)
        if not source.is_file(video):
            raise VideoError("changed while it was read")
        self.summary.encoded += 1
        return VideoFeatures(streams, source, self._duration(streams))

    def _duration(self, streams: Streams) -> float | None:
        """Seconds that the rows cover; None if no stream has a fixed rate."""
        rates = {key: made["rate"] for key, made in self._store.streams.items()}
        return max((len(rows) / rates[key] for key, rows in streams.items() if rates[key]), default=None)

    def _report(self, bar: Any, done: int, total: int) -> None:
        """Show how fast the extraction is, in a line a minute where there is no progress bar."""
        now = time.monotonic()
        speed = 3600 * done / max(now - self._started, 1e-9)
        bar.set_postfix_str(f"{speed:.0f} videos an hour")
        if bar.disable and done < total and now - self._reported > _SECONDS_BETWEEN_LINES:
            self._reported = now
            left = (total - done) / speed * 60
            log.info("%d of %d videos, %.0f an hour, about %.0f minutes left", done, total, speed, left)


def _check_id(video_id: str, streams: Collection[str]) -> None:
    """VideoError for an id that cannot be the name of a group."""
    try:
        video_id.encode()
    except UnicodeEncodeError:
        raise VideoError("its name is not UTF-8; rename it") from None
    if named := {*video_id.split("/")}.intersection(streams):
        raise VideoError(f"{named.pop()} in its path is the name of a stream; rename it")


def _check(streams: Streams) -> None:
    for key, rows in streams.items():
        if not len(rows):
            raise VideoError(f"no rows of {key}")
        if not np.isfinite(rows).all():
            raise VideoError(f"{key} has NaN or infinity")
