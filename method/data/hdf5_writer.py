"""HDF5 files that are written whole or not at all, also on a full disk."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import h5py

from method.runtime.files import atomic_writer


@contextlib.contextmanager
def atomic_hdf5(path: Path) -> Iterator[h5py.File]:
    """A new HDF5 file that replaces `path` when the block ends. OSError for a full disk; `path` is then unchanged."""
    with atomic_writer(path) as file:
        guarded = _GuardedFile(file)
        try:
            with h5py.File(guarded, "w") as hdf5:
                yield hdf5
        except Exception:
            if guarded.error is None:  # otherwise HDF5 missed what could not be written
                raise
        if guarded.error:
            raise guarded.error


class _GuardedFile:
    """A file for HDF5 in which no write fails: HDF5 crashes the process when it cannot write its last blocks.

    error: the first error, after which nothing is written.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, content: Any) -> int:
        """Write, or remember why not."""
        self._guard(lambda: self._file.write(content))
        return len(content)

    def truncate(self, size: int) -> int:
        """Set the size, or remember why not."""
        self._guard(lambda: self._file.truncate(size))
        return size

    def flush(self) -> None:
        """Flush, or remember why not."""
        self._guard(self._file.flush)

    def seek(self, *place: int) -> int:
        """Seek, which may flush."""
        self._guard(lambda: self._file.seek(*place))
        return self._file.tell() if self.error is None else 0

    def _guard(self, action: Callable[[], object]) -> None:
        if self.error is None:
            try:
                action()
            except OSError as error:
                self.error = error
