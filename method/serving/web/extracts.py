"""Pictures and clips of moments for the page: made when they are first requested, and kept in a folder.

A file's name is a digest of the video file, its size and time, and the moment, so that a changed video gets new ones.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from werkzeug.exceptions import ServiceUnavailable

from method.runtime.files import atomic_writer, digest_of
from method.serving.answer import clean
from method.video.clips import write_clip
from method.video.container import VideoError
from method.video.stills import write_still

log = logging.getLogger(__name__)

MAX_CLIP = 120.0  # seconds

_VERSION = 1  # incremented when the files are made in another way
_MAX_BYTES = {".jpg": 200 << 20, ".mp4": 2 << 30}  # kept in the folder
_AT_ONCE = {".jpg": 2, ".mp4": 1}  # made at the same time
_WAITING = {".jpg": 6, ".mp4": 3}  # requests that are answered or wait; each holds a thread of the server
_MAX_FAILED = 10_000
_LEFT_OVER = 3600.0  # seconds after which an unfinished file was left by a killed process


class Extracts:
    """The pictures and clips of one folder; safe to call from several threads.

    Args:
        folder: where they are kept; created when it is needed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._working = {kind: threading.Semaphore(count) for kind, count in _AT_ONCE.items()}
        self._waiting = {kind: threading.Semaphore(count) for kind, count in _WAITING.items()}
        self._failed: set[str] = set()
        self._bytes = dict.fromkeys(_MAX_BYTES, 0)
        self._lock = threading.Lock()  # of the sizes
        self._count()

    def picture(self, video_id: str, video: Path, at: float, duration: float | None) -> Path | None:
        """A frame of a video as a JPEG file.

        Args:
            video_id: of the video.
            video: its file.
            at: which frame, as a fraction 0 to 1 of the video.
            duration: of the video, in seconds; None if it is unknown.

        Returns:
            The file, None if it cannot be made.

        Raises:
            ServiceUnavailable: too many requests are waiting.
        """
        return self._find(video_id, video, ".jpg", [at, duration], lambda file: write_still(video, file, at, duration))

    def clip(self, video_id: str, video: Path, start: float, end: float) -> Path | None:
        """A part of a video, in seconds, as an MP4 file of at most `MAX_CLIP` seconds. Otherwise as `picture`."""
        end = min(end, start + MAX_CLIP)
        return self._find(video_id, video, ".mp4", [start, end], lambda file: write_clip(video, file, start, end))

    def _find(
        self, video_id: str, video: Path, kind: str, moment: list[float | None], write: Callable[[BinaryIO], object]
    ) -> Path | None:
        try:
            status = video.stat()
        except OSError:
            return None
        name = digest_of([_VERSION, video_id, status.st_size, status.st_mtime_ns, *moment])[:32] + kind
        path = self._folder / name
        if path.exists():
            return path
        if name in self._failed:
            return None
        if not self._waiting[kind].acquire(blocking=False):
            raise ServiceUnavailable(retry_after=1)
        try:
            with self._working[kind]:
                if not path.exists():  # another thread has made it meanwhile
                    with atomic_writer(path) as file:
                        write(file)
                    self._keep_small(path)
            return path
        except (VideoError, OSError) as error:
            log.warning("no %s of %s: %s", "picture" if kind == ".jpg" else "clip", clean(video_id), error)
            if isinstance(error, VideoError) and len(self._failed) < _MAX_FAILED:
                self._failed.add(name)
            return None
        finally:
            self._waiting[kind].release()

    def _count(self) -> None:
        """Measure what is there, and remove what killed processes left."""
        with contextlib.suppress(OSError):
            for path in self._folder.iterdir():
                with contextlib.suppress(OSError):
                    status = path.stat()
                    if path.suffix in self._bytes:
                        self._bytes[path.suffix] += status.st_size
                    elif path.suffix == ".part" and time.time() - status.st_mtime > _LEFT_OVER:
                        path.unlink()

    def _keep_small(self, added: Path) -> None:
        """Remove the oldest files of a kind if there are too many bytes of them."""
        kind = added.suffix
        with self._lock, contextlib.suppress(OSError):
            self._bytes[kind] += added.stat().st_size
            if self._bytes[kind] <= _MAX_BYTES[kind]:
                return
            found = sorted((path.stat().st_mtime, path, path.stat().st_size) for path in self._folder.glob(f"*{kind}"))
            left = sum(size for _, _, size in found)
            for _, path, size in found:
                if left <= 0.9 * _MAX_BYTES[kind] or path == added:
                    break
                path.unlink(missing_ok=True)
                left -= size
            self._bytes[kind] = left
