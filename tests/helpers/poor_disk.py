"""A file system that lacks operations which the content of files does not depend on, simulated by failing calls."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import shutil
import stat
from typing import Any

import pytest
import torch

from method.runtime import locks

LOCKS = ("ENOSYS", "ENOLCK", "EOPNOTSUPP", "EINVAL", "EIO")


def refuse_locks(patch: pytest.MonkeyPatch, name: str = "ENOSYS") -> None:
    """Like Lustre without `flock`, some NFS and some FUSE; the warning is shown again."""
    patch.setattr(locks, "_devices_without_locks", set())
    patch.setattr(fcntl, "flock", _refusing(name))


def refuse_all(patch: pytest.MonkeyPatch, name: str = "EOPNOTSUPP") -> None:
    """No locks, permissions, flushed or renamed folders, flushed files, mapped files or free room."""
    refuse_locks(patch, name)
    rename, opened, fail = os.rename, mmap.mmap, _refusing(name)

    def rename_files(source: Any, target: Any) -> None:
        if stat.S_ISDIR(os.stat(source).st_mode):
            fail()
        rename(source, target)

    def map_memory(descriptor: int, *arguments: Any, **named: Any) -> Any:
        return opened(descriptor, *arguments, **named) if descriptor == -1 else fail()

    patch.setattr(os, "rename", rename_files)
    for call in ("chmod", "fchmod", "utime", "fsync"):
        patch.setattr(os, call, fail)

    def map_tensor(*arguments: Any, **named: Any) -> Any:
        raise RuntimeError(f"unable to mmap: {os.strerror(getattr(errno, name))}")

    patch.setattr(mmap, "mmap", map_memory)
    patch.setattr(torch, "from_file", map_tensor)
    patch.setattr(shutil, "disk_usage", fail)


def _refusing(name: str) -> Any:
    number = getattr(errno, name)

    def fail(*arguments: Any, **named: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return fail
