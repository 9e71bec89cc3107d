"""Feature files: HDF5 files of float arrays, checked by their headers and read array by array."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from method.data.linked_files import LinkedArray, LinkResolver, state_of
from method.data.preprocessing import FloatRows
from method.runtime.errors import InputError, summarize
from method.runtime.files import require_file

ACTION_KEY = "i3d_feat"
OBJECT_KEY = "clip_feat"

_NUMBERS = (h5py.h5t.INTEGER, h5py.h5t.FLOAT)


def open_hdf5(path: Path) -> h5py.File:
    """Open an HDF5 file for reading. InputError if it is missing or not one."""
    require_file(path)
    try:
        return h5py.File(path, "r", locking=False)
    except OSError as error:
        raise InputError(f"{path}: not a readable HDF5 file ({error})") from error


class FeatureFile:
    """An HDF5 file of float features, opened on first use, and again in every process.

    HDF5 handles do not survive a fork, so each data worker opens its own.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: Any = None
        self._process = -1
        self._resolver: LinkResolver | None = None
        self._sources: dict[str, tuple[LinkedArray, ...]] = {}  # array -> where it is stored, if in other files
        self._states: dict[str, dict[str, int]] = {}  # of this file and of linked ones, when first used

    def __reduce__(self) -> tuple[Any, ...]:
        return FeatureFile, (self.path,)

    def _open(self) -> Any:
        if self._process != os.getpid():
            require_file(self.path)
            self._sources, self._states = {}, {str(self.path): state_of(self.path)}
            self._file = open_hdf5(self.path)
            self._resolver = LinkResolver(self._file)
            self._process = os.getpid()
        return self._file

    def state(self) -> dict[str, int]:
        """Size and times of the file when this process opened it."""
        self._open()
        return self._states[str(self.path)]

    def has_changed(self) -> bool:
        """Whether the file, or a file that it links to, was modified or removed since this process first used it."""
        self._open()
        try:
            return any(state_of(path) != state for path, state in self._states.items())
        except OSError:
            return True

    def linked(self, names: Iterable[str]) -> dict[str, list[dict[str, Any]]]:
        """For each of these arrays that is stored in other files: these files, each with the array's address in it.

        A link or a virtual dataset does not change when its target does, hence size and times of the target.

        Raises:
            InputError: for a missing array or target.
        """
        self._open()
        found = {}
        for name in names:
            if name not in self._sources:
                with self._errors_naming(name):
                    self._array(name, None)
            if sources := self._sources[name]:
                found[name] = [{"path": path, "address": at, **self._states[path]} for path, at in sources]
        return found

    def _array(self, name: str, width: int | None) -> tuple[Any, int]:
        """The array `name` and its number of rows. InputError if it, or a file that it is stored in, is unusable."""
        root = self._open()
        assert self._resolver is not None
        try:
            stored, rows = _open_array(root, name, width)
        except _Unreadable as error:
            if broken := self._resolver.broken_link(name):
                raise InputError(f"{name!r} is a link to {broken}, which is missing or no HDF5 file") from error
            raise
        try:
            if name not in self._sources:
                self._sources[name] = self._resolver.resolve(stored)
            for path, _ in self._sources[name]:
                if path not in self._states:
                    self._states[path] = state_of(path)
                elif not os.path.exists(path):
                    raise InputError(f"is read from {path}, which is missing")
        except InputError as error:
            raise InputError(f"{name!r} {error}") from error
        except (KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(f"{name!r} cannot be read ({error})") from error
        return stored, rows

    def read(self, name: str, width: int) -> FloatRows:
        """Read the array `name`, (n, width), (1, n, width) or for a single row (width,), as float32 (n, width).

        Raises:
            InputError: for an array that is missing, misshapen, unreadable or not finite.
        """
        with self._errors_naming(name), np.errstate(over="ignore"):
            stored, _ = self._array(name, width)
            rows = np.asarray(h5py.Dataset(stored)[()], dtype=np.float32).reshape(-1, width)
        with np.errstate(over="ignore", invalid="ignore"):
            squares_n = np.einsum("nd,nd->n", rows, rows)
        if not np.isfinite(squares_n).all():
            bad = int(np.flatnonzero(~np.isfinite(squares_n))[0])
            raise InputError(
                f"{self.path}: {name!r} row {bad} holds NaN, infinity or numbers too large to square, "
                "expected finite numbers"
            )
        return rows

    def read_middle(self, name: str, width: int) -> FloatRows:
        """Read only the middle row of the array `name`, (width,), unchecked."""
        with self._errors_naming(name), np.errstate(over="ignore"):
            stored, count = self._array(name, width)
            row = np.empty(width, np.float32)
            # For a single row, the low-level interface is several times as fast.
            space, start = stored.get_space(), (0, count // 2, 0)[-stored.rank :]
            space.select_hyperslab(start, (1, 1, width)[-stored.rank :])
            stored.read(h5py.h5s.create_simple((width,)), space, row)
            return row

    def check(self, names: Iterable[str], width: int) -> dict[str, int]:
        """Check that arrays exist and have the right shape and type, by their headers; returns the rows of each.

        Raises:
            InputError: naming the first five arrays that are missing or wrong, with the number of others.
        """
        self._open()
        rows: dict[str, int] = {}
        problems = []
        for name in names:
            try:
                _, rows[name] = self._array(name, width)
            except InputError as error:
                problems.append(str(error))
        if problems:
            raise InputError(f"{self.path}: {summarize(problems)}")
        return rows

    @contextlib.contextmanager
    def _errors_naming(self, name: str) -> Iterator[None]:
        """Raise errors in this block as InputError with the file and the array."""
        try:
            yield
        except InputError as error:
            raise InputError(f"{self.path}: {error}") from error
        except (OSError, RuntimeError, ValueError, TypeError, MemoryError) as error:
            raise InputError(f"{self.path}: {name!r} cannot be read ({error})") from error


class _Unreadable(InputError):
    """HDF5 cannot open an array."""


def _open_array(file: Any, name: str, width: int | None) -> tuple[Any, int]:
    """The array `name`, a low-level DatasetID (fast to open), and its number of rows. InputError if it is unusable."""
    try:
        stored = h5py.h5d.open(file.id, name.encode())
        shape: tuple[int, ...] = stored.shape or ()
        is_number = stored.get_type().get_class() in _NUMBERS
    except (KeyError, ValueError, RuntimeError, TypeError) as error:
        reason = str(error.args[0]) if error.args else type(error).__name__
        if "doesn't exist" in reason or "component not found" in reason:
            raise InputError(f"{name!r} is missing") from error
        if "not a dataset" in reason:
            raise InputError(f"{name!r} is a group, expected an array") from error
        raise _Unreadable(f"{name!r} cannot be read ({reason})") from error
    if len(shape) == 3 and shape[0] == 1:
        shape = shape[1:]
    elif len(shape) == 1:  # a pooled vector
        shape = (1, *shape)
    if len(shape) != 2 or width not in (None, shape[1]):
        raise InputError(f"{name!r} has shape {tuple(stored.shape or ())}, expected (rows, {width})")
    if shape[0] == 0:
        raise InputError(f"{name!r} has no rows, expected at least one")
    if not is_number:
        raise InputError(f"{name!r} holds neither integers nor floats, expected numbers")
    return stored, int(shape[0])
