"""Feature files: reading, checking and the preprocessing that turns them into what the model sees.

Letters: n rows of a stream as stored, D its width, L = max_length rows kept.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from method.data.linked_files import LinkedArray, LinkResolver, state_of
from method.runtime.errors import InputError, summarize
from method.runtime.files import require_file

FloatRows = npt.NDArray[np.float32]

ACTION_KEY = "i3d_feat"
OBJECT_KEY = "clip_feat"

_NUMBERS = (h5py.h5t.INTEGER, h5py.h5t.FLOAT)


def sample_frames(rows_nD: FloatRows, max_length: int) -> FloatRows:
    """Cut a stream of more than `max_length` rows into that many pieces and average each.

    Piece i spans round(i/L*n) to round((i+1)/L*n), ends capped at n-1; an empty piece takes its first row.
    Shorter streams are returned as they are.
    """
    n = len(rows_nD)
    if n <= max_length:
        return rows_nD
    edges = np.minimum(np.round(np.arange(max_length + 1) / max_length * n).astype(np.int64), n - 1)
    starts, ends = edges[:-1], edges[1:]
    # reduceat sums up to the next start and gives the row itself for an empty piece, as wanted; only the last
    # piece needs its own end.
    sums = np.add.reduceat(rows_nD[: max(int(ends[-1]), int(starts[-1]) + 1)], starts, axis=0)
    return (sums / np.maximum(ends - starts, 1)[:, None]).astype(np.float32)


def normalize_rows(rows: Tensor) -> Tensor:
    """Divide each row of (..., D) by its L2 norm + 1e-5."""
    return rows / (rows.norm(dim=-1, keepdim=True) + 1e-5)


def preprocess_stream(rows_nD: FloatRows, max_length: int) -> Tensor:
    """A stream as the model sees it: sampled to at most `max_length` rows, each normalised. (min(n, L), D)."""
    return normalize_rows(torch.from_numpy(sample_frames(rows_nD, max_length)))


def preprocess_query(rows_wD: FloatRows, max_length: int) -> Tensor:
    """Token features as the model sees them: each normalised, the first `max_length`. (min(w, L), D)."""
    return normalize_rows(torch.from_numpy(rows_wD[:max_length]))


class FeatureFile:
    """An HDF5 file of float features, opened when first read and once in every process.

    HDF5 handles do not survive a fork, so each data worker opens its own.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: Any = None
        self._process = -1
        self._finder: LinkResolver | None = None
        self._sources: dict[str, tuple[LinkedArray, ...]] = {}
        self._states: dict[str, dict[str, int]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return FeatureFile, (self.path,)

    def _open(self) -> Any:
        if self._process != os.getpid():
            require_file(self.path)
            self._sources, self._states = {}, {str(self.path): state_of(self.path)}
            try:
                self._file = h5py.File(self.path, "r", locking=False)
            except OSError as error:
                raise InputError(f"{self.path}: not a readable HDF5 file ({error})") from error
            self._finder = LinkResolver(self._file)
            self._process = os.getpid()
        return self._file

    def state(self) -> dict[str, int]:
        """Size and times of the file when this process opened it; any change to it gives others."""
        self._open()
        return self._states[str(self.path)]

    def has_changed(self) -> bool:
        """Whether the file, or one that its arrays lie in, was changed or removed since this process first saw it."""
        self._open()
        try:
            return any(state_of(path) != state for path, state in self._states.items())
        except OSError:
            return True

    def linked(self, names: Iterable[str]) -> dict[str, list[dict[str, Any]]]:
        """Of the arrays that lie elsewhere than in this file itself: the files that they are read from.

        A link or a virtual dataset stays as it is when what it leads to changes. Each file is told by its real path,
        the address of the array in it, and its size and times. InputError for what is missing.
        """
        self._open()
        found = {}
        for name in names:
            if name not in self._sources:
                with self._naming(name):
                    self._array(name, None)
            if sources := self._sources[name]:
                found[name] = [{"path": path, "address": at, **self._states[path]} for path, at in sources]
        return found

    def _array(self, name: str, width: int | None) -> tuple[Any, int]:
        """The array `name` and its rows. InputError if it cannot be used, or if what it is read from is missing."""
        root = self._open()
        assert self._finder is not None
        try:
            stored, rows = _array(root, name, width)
        except _Unreadable as error:
            if broken := self._finder.broken_link(name):
                raise InputError(f"{name!r} is a link to {broken}, which is missing or no HDF5 file") from error
            raise
        try:
            if name not in self._sources:
                self._sources[name] = self._finder.find(stored)
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
        """Read the (n, width) array `name` as float32; an extra leading dimension of 1 is dropped.

        InputError, with the file and the name, for what is missing, misshapen, not finite or unreadable.
        """
        with self._naming(name), np.errstate(over="ignore"):
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
        """Read the row in the middle of the array `name`, (width,); much faster than the whole, and not checked."""
        with self._naming(name), np.errstate(over="ignore"):
            stored, count = self._array(name, width)
            row = np.empty(width, np.float32)
            # By the low-level interface, which takes a fraction of the time for so little.
            space, leading = stored.get_space(), (0,) * (stored.rank - 2)
            space.select_hyperslab((*leading, count // 2, 0), (*(1 for _ in leading), 1, width))
            stored.read(h5py.h5s.create_simple((width,)), space, row)
            return row

    @contextlib.contextmanager
    def _naming(self, name: str) -> Iterator[None]:
        """Turn what can go wrong with an array into an InputError that names the file and the array."""
        try:
            yield
        except InputError as error:
            raise InputError(f"{self.path}: {error}") from error
        except (OSError, RuntimeError, ValueError, TypeError, MemoryError) as error:
            raise InputError(f"{self.path}: {name!r} cannot be read ({error})") from error

    def check(self, names: Iterable[str], width: int) -> dict[str, int]:
        """Check presence, shape and type of many arrays without reading them; returns the rows of each.

        InputError names the first five that are missing or wrong and counts the rest.
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


class _Unreadable(InputError):
    """HDF5 cannot open an array, for a reason of its own."""


def _array(file: Any, name: str, width: int | None) -> tuple[Any, int]:
    """The array `name`, by HDF5's low-level interface, which is fast, and its rows. InputError if it cannot be used."""
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
    if len(shape) != 2 or width not in (None, shape[1]):
        raise InputError(f"{name!r} has shape {tuple(stored.shape or ())}, expected (rows, {width})")
    if shape[0] == 0:
        raise InputError(f"{name!r} has no rows, expected at least one")
    if not is_number:
        raise InputError(f"{name!r} holds neither integers nor floats, expected numbers")
    return stored, int(shape[0])
