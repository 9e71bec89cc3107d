"""Feature files: reading, checking and the preprocessing that turns them into what the model sees.

Letters: n rows of a stream as stored, D its width, L = max_length rows kept.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

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
        self._state: dict[str, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_file": None, "_process": -1, "_state": {}}

    def _open(self) -> Any:
        if self._process != os.getpid():
            require_file(self.path)
            self._state = _state(self.path)
            try:
                self._file = h5py.File(self.path, "r", locking=False)
            except OSError as error:
                raise InputError(f"{self.path}: not a readable HDF5 file ({error})") from error
            self._process = os.getpid()
        return self._file

    def state(self) -> dict[str, int]:
        """Size and times of the file when this process opened it; any change to it gives others."""
        self._open()
        return self._state

    def has_changed(self) -> bool:
        """Whether the file has been written to, replaced or removed since this process opened it."""
        try:
            return self.state() != _state(self.path)
        except OSError:
            return True

    def read(self, name: str, width: int) -> FloatRows:
        """Read the (n, width) array `name` as float32; an extra leading dimension of 1 is dropped.

        InputError, with the file and the name, for what is missing, misshapen, not finite or unreadable.
        """
        root = self._open()
        try:
            stored, _ = _array(root, name, width)
            with np.errstate(over="ignore"):
                rows = np.asarray(h5py.Dataset(stored)[()], dtype=np.float32).reshape(-1, width)
        except InputError as error:
            raise InputError(f"{self.path}: {error}") from error
        except (OSError, RuntimeError, ValueError, TypeError, MemoryError) as error:
            raise InputError(f"{self.path}: {name!r} cannot be read ({error})") from error
        with np.errstate(over="ignore", invalid="ignore"):
            squares_n = np.einsum("nd,nd->n", rows, rows)
        if not np.isfinite(squares_n).all():
            bad = int(np.flatnonzero(~np.isfinite(squares_n))[0])
            raise InputError(
                f"{self.path}: {name!r} row {bad} holds NaN, infinity or numbers too large to square, "
                "expected finite numbers"
            )
        return rows

    def check(self, names: Iterable[str], width: int) -> dict[str, int]:
        """Check presence, shape and type of many arrays without reading them; returns the rows of each.

        InputError names the first five that are missing or wrong and counts the rest.
        """
        root = self._open()
        rows: dict[str, int] = {}
        problems = []
        for name in names:
            try:
                _, rows[name] = _array(root, name, width)
            except InputError as error:
                problems.append(str(error))
        if problems:
            raise InputError(f"{self.path}: {summarize(problems)}")
        return rows


def _state(path: Path) -> dict[str, int]:
    status = path.stat()
    # The time of the last change, unlike that of the content, cannot be set back by copying a file over this one.
    return {"size": status.st_size, "modified": status.st_mtime_ns, "changed": status.st_ctime_ns}


def _array(file: Any, name: str, width: int) -> tuple[Any, int]:
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
        raise InputError(f"{name!r} cannot be read ({reason})") from error
    if len(shape) == 3 and shape[0] == 1:
        shape = shape[1:]
    if len(shape) != 2 or shape[1] != width:
        raise InputError(f"{name!r} has shape {tuple(stored.shape or ())}, expected (rows, {width})")
    if shape[0] == 0:
        raise InputError(f"{name!r} has no rows, expected at least one")
    if not is_number:
        raise InputError(f"{name!r} holds neither integers nor floats, expected numbers")
    return stored, int(shape[0])
