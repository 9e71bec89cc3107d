"""Data workers: signals and exit of a worker process, and one-line errors when one cannot start or dies."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import multiprocessing.queues
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, NoReturn

from torch.utils.data import DataLoader

from method.data.shared_memory import REMEDY, reuse_memory
from method.runtime.errors import InputError

_PR_SET_PDEATHSIG = 1  # from <sys/prctl.h>


def init_worker(worker: int, copied: bool) -> None:
    """Ignore the signals that the main process handles, and exit when it does, even by SIGKILL.

    Args:
        worker: its number.
        copied: whether the main process copies each batch on arrival, so that its memory can be reused.
    """
    reuse_memory(copied)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Job schedulers send SIGTERM to all processes of a job, but the main one first finishes its step.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for crash in (signal.SIGBUS, signal.SIGSEGV, signal.SIGFPE):  # torch's handlers print a line
        signal.signal(crash, signal.SIG_DFL)
    sys.excepthook = lambda *error: None  # connections closed by the main process; errors in data are returned
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_exit)  # type: ignore[attr-defined]
    if sys.platform == "linux":  # elsewhere, torch's watchdog notices within seconds
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _exit(error: Exception, batch: object) -> NoReturn:
    """Exit the worker; Python would drop the batch and the main process would wait for it forever."""
    os.write(2, f"a data worker cannot send a batch ({error})\n".encode())
    os._exit(1)


@atexit.register
def _kill_workers() -> None:
    """Kill the remaining workers; the multiprocessing module would send SIGTERM, which they ignore, and wait."""
    workers = multiprocessing.active_children()
    if workers:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for worker in workers:
        worker.kill()


def read_ahead(loader: DataLoader[Any]) -> Iterator[Any]:
    """The batches of a loader with workers. InputError if a worker cannot be started or dies."""
    with _errors_in_one_line():
        _check_semaphores(3 * loader.num_workers + 8)
        batches = iter(loader)
    _deaths.install()
    while True:
        with _errors_in_one_line(), _deaths.raised_here():
            try:
                batch = next(batches)
            except StopIteration:
                return
        yield batch


def _check_semaphores(count: int) -> None:
    """OSError unless `count` semaphores are available; torch, given only some, prints tracebacks at exit."""
    semaphores = [multiprocessing.Semaphore() for _ in range(count)]
    semaphores.clear()


@contextlib.contextmanager
def _errors_in_one_line() -> Iterator[None]:
    try:
        yield
    except (ConnectionError, EOFError, FileNotFoundError) as error:  # the worker's end of a queue is gone
        raise _death(str(error)) from error
    except OSError as error:
        raise InputError(f"data workers cannot be started ({error.strerror or error}); {REMEDY}") from error
    except RuntimeError as error:
        if "open files" in str(error) or "ancdata" in str(error):  # a descriptor was lost in transfer
            raise InputError("too many open files: raise the limit (ulimit -n), or use fewer --num_workers") from error
        if "DataLoader worker" not in str(error):
            raise
        raise _death(str(error)) from error


def _death(report: str) -> InputError:
    cause = re.search(r"by signal: ([\w ]+)", report)
    how = f"was killed ({cause[1].strip()})" if cause else "exited unexpectedly"
    return InputError(f"a data worker {how}: out of memory, or a corrupt HDF5 file? {REMEDY}")


class _Deaths:
    """Deaths of workers, as reported by torch's SIGCHLD handler.

    That handler raises wherever the main process happens to be, even where Python can only ignore it. This one raises
    while a batch is awaited, and otherwise before the next one.
    """

    def __init__(self) -> None:
        self._handler: Any = None
        self._report: RuntimeError | None = None
        self._waiting = False

    def install(self) -> None:
        """Wrap torch's handler, which it installs when workers are started from the main thread."""
        handler = signal.getsignal(signal.SIGCHLD)
        if threading.current_thread() is threading.main_thread() and callable(handler) and handler != self._receive:
            self._handler = handler
            signal.signal(signal.SIGCHLD, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        try:
            self._handler(number, frame)
        except RuntimeError as report:
            if self._waiting:
                raise
            self._report = report

    @contextlib.contextmanager
    def raised_here(self) -> Iterator[None]:
        """Raise the RuntimeError of a death reported before or within this block."""
        self._waiting = True
        try:
            if self._report is not None:
                report, self._report = self._report, None
                raise report
            yield
        finally:
            self._waiting = False


_deaths = _Deaths()
