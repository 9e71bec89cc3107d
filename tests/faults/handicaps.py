"""Functions that slow down or break a program, called inside it before it starts."""

from __future__ import annotations

import ctypes
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

_PIECE = 1 << 14  # bytes
_CLONE_NEWNS = 0x20000  # from <sched.h>


def slow_disk(seconds: float) -> None:
    """Write files in pieces, and let every piece, flush and rename take so long."""

    def slowed(function: Any) -> Any:
        def slow(*arguments: Any, **named: Any) -> Any:
            time.sleep(seconds)
            return function(*arguments, **named)

        return slow

    def open_slowly(descriptor: int, mode: str = "r", *arguments: Any, **named: Any) -> Any:
        if mode == "wb":
            return io.BufferedWriter(_SlowFile(descriptor, seconds))
        return opened(descriptor, mode, *arguments, **named)

    opened, os.fdopen = os.fdopen, open_slowly  # type: ignore[assignment]
    os.fsync, os.replace = slowed(os.fsync), slowed(os.replace)


class _SlowFile(io.FileIO):
    def __init__(self, descriptor: int, seconds: float) -> None:
        super().__init__(descriptor, "wb")
        self._seconds = seconds

    def write(self, data: Any) -> int:
        time.sleep(self._seconds)
        return super().write(memoryview(data)[:_PIECE])


def die_at(operation: int) -> None:
    """Be killed just before the operation of this number, counted from 0, that changes a folder or flushes a file."""
    counted = 0

    def count() -> None:
        nonlocal counted
        if counted == operation:
            os.kill(os.getpid(), signal.SIGKILL)
        counted += 1

    def watch(event: str, arguments: Any) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or event in ("os.rename", "os.remove", "os.mkdir", "os.chmod"):
            count()

    def flush(descriptor: int) -> None:
        count()
        fsync(descriptor)

    fsync, os.fsync = os.fsync, flush  # type: ignore[assignment]
    sys.addaudithook(watch)


def slow_steps(seconds: float) -> None:
    """Let every training step take so much longer."""
    from method.training.loop import Training

    step = Training.step

    def slow(self: Training, *arguments: Any) -> Any:
        time.sleep(seconds)
        return step(self, *arguments)

    Training.step = slow  # type: ignore[method-assign,assignment]


def slow_reading(seconds: float) -> None:
    """Let every array of features take so much longer to read, from its file and from the cache."""
    from method.data.cache.rows_file import RowsFile
    from method.data.features import FeatureFile

    def slowed(read: Any) -> Any:
        def slow(*arguments: Any) -> Any:
            time.sleep(seconds)
            return read(*arguments)

        return slow

    FeatureFile.read = slowed(FeatureFile.read)  # type: ignore[method-assign]
    RowsFile.read_into = slowed(RowsFile.read_into)  # type: ignore[method-assign]


def blind_to_free_room() -> None:
    """Write a feature cache however little disk space is free."""
    from method.data.cache import feature_cache

    feature_cache.LEFT_FREE = -(1 << 40)


def slow_checkpoints(seconds: float) -> None:
    """Let every checkpoint take so much longer to read."""
    load = torch.load

    def slow(*arguments: Any, **named: Any) -> Any:
        time.sleep(seconds)
        content = load(*arguments, **named)
        time.sleep(seconds)
        return content

    torch.load = slow


def broken_update(updates: int) -> None:
    """Set a weight to NaN after this many updates."""
    from method.training.optimizer import BertAdam

    step, done = BertAdam.step, 0

    def broken(self: BertAdam, *arguments: Any) -> None:
        nonlocal done
        step(self, *arguments)
        done += 1
        if done > updates:
            self.param_groups[0]["params"][0].data.view(-1)[0] = float("nan")

    BertAdam.step = broken  # type: ignore[method-assign,assignment]


def configs_in(folder: str) -> None:
    """Read the YAML files of datasets from another folder."""
    from method.config import options as config

    config.CONFIGS = Path(folder)


def small_blocks() -> None:
    """Give caches of edits many blocks."""
    from method.negatives import cache as negative_cache

    negative_cache.CAPTIONS_PER_BLOCK = 5


def shared_memory(kilobytes: int) -> None:
    """Limit shared memory, in a mount namespace of its own; needs root."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare")
    for command in (("--make-rprivate", "/"), ("-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", "/dev/shm")):
        subprocess.run(["mount", *command], check=True)
