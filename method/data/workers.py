"""The processes that read ahead: what they leave to the main process, and what it says when one of them dies."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import dataclasses
import multiprocessing.queues
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, NoReturn, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from method.runtime.errors import InputError

_Batch = TypeVar("_Batch")

PREFETCHED = 2  # batches that each worker is asked for ahead

_PR_SET_PDEATHSIG = 1  # from <sys/prctl.h>
_REMEDY = "fewer --num_workers need less memory, 0 none of /dev/shm (containers get more of it by --shm-size)"


def init_worker(worker: int, copied: bool) -> None:
    """Leave signals to the main process, and end when it ends, even by SIGKILL (at once on Linux, else in seconds).

    copied: whether the main process copies each batch before it asks for another, so that its memory can be used again.
    """
    _memory.recycles = copied
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Job schedulers send SIGTERM to all processes of a job; the main one has a step to end first.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for crash in (signal.SIGBUS, signal.SIGSEGV, signal.SIGFPE):  # torch would print a line of its own
        signal.signal(crash, signal.SIG_DFL)
    sys.excepthook = lambda *error: None  # of connections that the main process has cut; the rest it gets as values
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_give_up)  # type: ignore[attr-defined]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _give_up(error: Exception, batch: object) -> NoReturn:
    """End the worker; Python would drop the batch, for which the main process would wait forever."""
    os.write(2, f"a data worker cannot hand over a batch ({error})\n".encode())
    os._exit(1)


@atexit.register
def _end_workers() -> None:
    """End the workers that are left; the multiprocessing module would ask them with SIGTERM and wait."""
    workers = multiprocessing.active_children()
    if workers:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for worker in workers:
        worker.kill()


def to_shared_memory(batch: _Batch) -> _Batch | InputError:
    """In a worker, the batch with its tensors in shared memory, or what to tell the user when there is no room."""
    if get_worker_info() is not None:
        _memory.end_batch()
        try:
            _share(batch)
        except (OSError, RuntimeError) as error:
            return _no_room(error)
    return batch


def allocate_rows(count: int, width: int, dtype: type[np.floating[Any]] = np.float32) -> Tensor:
    """Memory for rows, in a worker shared, so that handing them over copies nothing; InputError for no room."""
    if get_worker_info() is None:
        return torch.from_numpy(np.empty((count, width), dtype))  # of large pages, which PyTorch does not ask for
    rows = torch.from_numpy(np.empty(0, dtype))
    try:
        memory = _memory.take(count * width * rows.itemsize)
    except (OSError, RuntimeError) as error:
        raise _no_room(error) from error
    return rows.set_(memory, 0, (count, width), (width, 1))


class _SharedMemory:
    """What a worker's batches lie in.

    The pages of fresh shared memory have to be found and cleared, which takes several times as long as filling them.
    """

    def __init__(self) -> None:
        self.recycles = False
        # A worker is asked for a batch when the main process has the one PREFETCHED before; those since may be unread.
        self._sets: list[list[torch.UntypedStorage]] = [[] for _ in range(PREFETCHED + 1)]
        self._taken = 0

    def end_batch(self) -> None:
        """From here on give the memory of the batch that lies longest back."""
        self._sets.append(self._sets.pop(0))
        self._taken = 0

    def take(self, size: int) -> torch.UntypedStorage:
        """Memory of that many bytes or more that no other part of this batch has."""
        if not self.recycles:
            return torch.UntypedStorage._new_shared(size)
        own, place = self._sets[0], self._taken
        self._taken += 1
        if place == len(own):
            own.append(torch.UntypedStorage._new_shared(0))
        if len(own[place]) < size:
            own[place] = torch.UntypedStorage._new_shared(size + size // 8)  # the next may be a little larger
        return own[place]


_memory = _SharedMemory()


def _no_room(error: Exception) -> InputError:
    return InputError(f"no shared memory for a batch ({str(error).splitlines()[0]}); {_REMEDY}")


def _share(value: Any) -> None:
    if isinstance(value, Tensor):
        value.share_memory_()  # type: ignore[no-untyped-call,unused-ignore]
    elif isinstance(value, dict):
        for part in value.values():
            _share(part)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            _share(getattr(value, field.name))


def read_ahead(loader: DataLoader[Any]) -> Iterator[Any]:
    """The batches of a loader with workers; InputError when one of them cannot be started or dies."""
    with _plain_failures():
        _expect_semaphores(3 * loader.num_workers + 8)
        batches = iter(loader)
    _deaths.watch()
    while True:
        with _plain_failures(), _deaths.interrupt():
            try:
                batch = next(batches)
            except StopIteration:
                return
        yield batch


def _expect_semaphores(count: int) -> None:
    """OSError unless there are so many; torch, if it got only some, would leave behind what complains at the exit."""
    semaphores = [multiprocessing.Semaphore() for _ in range(count)]
    semaphores.clear()


@contextlib.contextmanager
def _plain_failures() -> Iterator[None]:
    try:
        yield
    except (ConnectionError, EOFError, FileNotFoundError) as error:  # the other end of a queue has gone
        raise _death(str(error)) from error
    except OSError as error:
        raise InputError(f"data workers cannot be started ({error.strerror or error}); {_REMEDY}") from error
    except RuntimeError as error:
        if "open files" in str(error) or "ancdata" in str(error):  # of a message that should have brought one
            raise InputError("too many open files: raise the limit (ulimit -n), or use fewer --num_workers") from error
        if "DataLoader worker" not in str(error):
            raise
        raise _death(str(error)) from error


def _death(report: str) -> InputError:
    cause = re.search(r"by signal: ([\w ]+)", report)
    how = f"was killed ({cause[1].strip()})" if cause else "ended unexpectedly"
    return InputError(f"a data worker {how}: is memory short, or an HDF5 file damaged? {_REMEDY}")


class _Deaths:
    """What torch's handler of SIGCHLD reports of workers.

    It would raise wherever the main process happens to be, even where Python can only ignore it; here it interrupts
    the waiting for a batch, and what happens at another time is raised before the next one.
    """

    def __init__(self) -> None:
        self._handler: Any = None
        self._report: RuntimeError | None = None
        self._waiting = False

    def watch(self) -> None:
        """Take the handler's place; it is there when torch has started workers from the main thread."""
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
    def interrupt(self) -> Iterator[None]:
        """Raise within this block what is or has been reported."""
        self._waiting = True
        try:
            if self._report is not None:
                report, self._report = self._report, None
                raise report
            yield
        finally:
            self._waiting = False


_deaths = _Deaths()
