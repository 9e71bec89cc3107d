"""The searcher of a server, replaced without a restart when the index on disk has changed."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from method.runtime.errors import InputError
from method.serving.searcher import Searcher

log = logging.getLogger(__name__)

CHECK_EVERY = 2.0  # seconds
RETRY_AFTER = 60.0


@dataclass(frozen=True)
class _Failure:
    """A generation that could not be opened, why, and when it is tried again."""

    generation: object
    retry_at: float
    reason: str


class SearcherSource:
    """Holds the searcher that answers now; safe to call from several threads.

    A new one is opened in a thread of its own, while the old one answers. If that fails, the old one stays; it is tried
    again after a minute, or when the index changes again.

    Args:
        searcher: the first one.
        generation: of the index on disk, another value after each change; None while there is none. Cheap to call.
        reopen: opens a searcher of the index on disk.
        opened: generation of the first searcher, taken before it was opened.
    """

    def __init__(
        self,
        searcher: Searcher,
        generation: Callable[[], object] = lambda: None,
        reopen: Callable[[], Searcher] | None = None,
        opened: object = None,
    ) -> None:
        self._searcher, self._read_generation, self._reopen = searcher, generation, reopen
        self._opened = opened
        self._failed: _Failure | None = None
        self._next_check = 0.0
        self._lock = threading.Lock()
        self._reloading: threading.Thread | None = None

    def current(self) -> Searcher:
        """The searcher to answer a request with, all of it: the next call may return another one."""
        if self._reopen is not None and time.monotonic() >= self._next_check and self._lock.acquire(blocking=False):
            try:
                self._check()
            finally:
                self._lock.release()
        return self._searcher

    @property
    def error(self) -> str | None:
        """Why the index on disk could not be opened; None if it is the one that is searched, as far as known."""
        return None if self._failed is None else self._failed.reason

    def wait(self) -> None:
        """Wait for a searcher that is being opened."""
        if (thread := self._reloading) is not None:
            thread.join()

    def _check(self) -> None:
        """Start to open another searcher if the index has changed; under the lock."""
        self._next_check = time.monotonic() + CHECK_EVERY
        if self._reloading is not None and self._reloading.is_alive():
            return
        found = self._read_generation()
        if found in (None, self._opened):
            return
        failed = self._failed
        if failed is not None and failed.generation == found and time.monotonic() < failed.retry_at:
            return
        self._reloading = threading.Thread(target=self._reload, args=(found,), name="reload", daemon=True)
        self._reloading.start()

    def _reload(self, generation: object) -> None:
        assert self._reopen is not None
        try:
            searcher = self._reopen()
        except Exception as error:  # whatever it is, the earlier searcher goes on
            is_known = isinstance(error, InputError | OSError)
            self._failed = _Failure(generation, time.monotonic() + RETRY_AFTER, str(error) if is_known else repr(error))
            line = "the index has changed but cannot be opened, so the earlier one is searched: %s"
            log.warning(line, self._failed.reason, exc_info=not is_known)
            return
        searcher.take_encoders(self._searcher)
        self._searcher, self._opened, self._failed = searcher, generation, None
        log.info("the index has changed: %d videos are searched now", len(searcher.video_ids))
