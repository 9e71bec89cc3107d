"""The file lock that keeps two processes from writing to the same place."""

import contextlib
import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from method.runtime.errors import InputError

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_ATTEMPTS = 0.2


@contextlib.contextmanager
def exclusive_lock(
    path: Path, busy: str, *, wait: bool = True, poll: Callable[[], object] = lambda: None
) -> Iterator[None]:
    """Hold the lock `path`, which one process can hold; the system releases it however the process ends.

    On a file system without locks, a warning is logged once and the block runs unlocked.

    Args:
        path: the file to lock, created if it does not exist.
        busy: message while another process holds the lock.
        wait: whether to log `busy` once and wait for that process; otherwise `busy` is raised as InputError.
        poll: called between attempts; it may raise to give up.
    """
    waited = False
    while (descriptor := _try_lock(path)) is None:
        if not wait:
            raise InputError(busy)
        if not waited:
            log.info("%s", busy)
        waited = True
        poll()
        time.sleep(_SECONDS_BETWEEN_ATTEMPTS)
    _locks.add(descriptor)
    try:
        yield
    finally:
        if descriptor in _locks:  # closed already in a forked process, where the number may belong to another file
            _locks.remove(descriptor)
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)


def _try_lock(path: Path) -> int | None:
    """The descriptor of the locked file, None when another process holds the lock."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError as error:
        device = os.fstat(descriptor).st_dev
        if device not in _devices_without_locks:
            log.warning(
                "%s: this file system has no file locks (%s); do not let two programs write there at the same time",
                path.parent,
                error.strerror,
            )
        _devices_without_locks.add(device)
        return descriptor
    with contextlib.suppress(FileNotFoundError):
        # Between opening and locking, the process that held the lock may have renamed the file.
        if os.path.samestat(os.fstat(descriptor), os.stat(path)):
            return descriptor
    os.close(descriptor)
    return None


_locks: set[int] = set()
_devices_without_locks: set[int] = set()


def _release_in_child() -> None:
    for descriptor in _locks:
        os.close(descriptor)
    _locks.clear()


# Otherwise data workers that outlive a killed main process would keep its lock.
os.register_at_fork(after_in_child=_release_in_child)
