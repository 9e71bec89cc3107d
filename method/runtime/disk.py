"""Sizes, flushing and moving on file systems that lack some operations.

Some (Lustre, NFS, FUSE, overlays) have no locks, no permissions or cannot rename a folder. Operations that do not
affect file contents may fail there without harm.
"""

import contextlib
import ctypes
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

# A full or failing disk, which no caller may ignore.
_LOSES_CONTENT = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG, errno.ESTALE}
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux
_CANNOT_RENAME_FOLDERS = {errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM}


def format_bytes(size: float) -> str:
    """A number of bytes for people.

    >>> format_bytes(4.93e9), format_bytes(250e3), format_bytes(12), format_bytes(float("inf"))
    ('4.9 GB', '0.2 MB', '12 bytes', 'an unknown amount')
    """
    if size == float("inf"):
        return "an unknown amount"
    if size >= 1e8:
        return f"{size / 1e9:.1f} GB"
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size:.0f} bytes"


def free_bytes(folder: Path) -> float:
    """Free bytes on the disk of a folder; infinity if the file system does not tell."""
    with ignore_unsupported():
        usage = shutil.disk_usage(folder)
        if usage.total or usage.free:
            return usage.free
    return float("inf")


@contextlib.contextmanager
def ignore_unsupported() -> Iterator[None]:
    """Ignore operations that a file system does not support; a full or failing disk still raises OSError."""
    try:
        yield
    except OSError as error:
        if error.errno in _LOSES_CONTENT:
            raise


def flush_to_disk(descriptor: int) -> None:
    """Fsync an open file, where the file system supports it."""
    with ignore_unsupported():
        os.fsync(descriptor)


def move(source: Path, target: Path) -> None:
    """Rename a file or folder to an unused name; a folder that cannot be renamed is copied and removed."""
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno not in _CANNOT_RENAME_FOLDERS or not source.is_dir():
            raise
        try:
            for path in [source, *sorted(source.rglob("*"))]:
                copy = target / path.relative_to(source)
                if path.is_dir():
                    copy.mkdir()
                else:
                    shutil.copyfile(path, copy)
        except BaseException:
            shutil.rmtree(target, ignore_errors=True)
            raise
        shutil.rmtree(source, ignore_errors=True)


def replace_folder(new: Path, target: Path) -> None:
    """Put a folder in the place of `target`, whose content, if there is any, is at `new` afterwards.

    In one step where the system can exchange two names (Linux, most file systems); elsewhere in two, between which
    `target` is missing and its content is at `<new>.old`; see `restore_folder`.
    """
    if not target.exists():
        move(new, target)
    elif not _exchange(new, target):
        old = new.with_name(f"{new.name}.old")
        move(target, old)
        move(new, target)
        move(old, new)


def restore_folder(new: Path, target: Path) -> None:
    """Finish or undo a `replace_folder` that was killed between its steps."""
    old = new.with_name(f"{new.name}.old")
    if old.exists():
        move(old, new if target.exists() else target)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step; False if the system or the file system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    if (number := ctypes.get_errno()) in _CANNOT_RENAME_FOLDERS:
        return False
    raise OSError(number, os.strerror(number), str(other))
