"""Feature files: reading, checking and the preprocessing of spec section 2.

Letters: n rows of a stream as stored, D its width, L = max_length rows kept.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from method.errors import InputError, summarize
from method.files import require_file

FloatRows = npt.NDArray[np.float32]

ACTION_KEY = "i3d_feat"
OBJECT_KEY = "clip_feat"


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

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_file": None, "_process": -1}

    def _open(self) -> Any:
        if self._process != os.getpid():
            require_file(self.path)
            try:
                self._file = h5py.File(self.path, "r", locking=False)
            except OSError as error:
                raise InputError(f"{self.path}: not a readable HDF5 file ({error})") from error
            self._process = os.getpid()
        return self._file

    def read(self, name: str, width: int) -> FloatRows:
        """Read the (n, width) array `name` as float32; an extra leading dimension of 1 is dropped.

        InputError, with the file and the name, for what is missing, misshapen, not finite or unreadable.
        """
        try:
            stored = self._open()[name]
            shape = getattr(stored, "shape", None)
            _check_shape(shape, width, f"{self.path}: {name!r}")
            rows = np.asarray(stored[()], dtype=np.float32).reshape(-1, width)
        except KeyError:
            raise InputError(f"{self.path}: no features named {name!r}") from None
        except (OSError, RuntimeError, ValueError, TypeError) as error:
            raise InputError(f"{self.path}: {name!r} cannot be read ({error})") from error
        if not np.isfinite(rows).all():
            bad = int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
            raise InputError(f"{self.path}: {name!r} row {bad} holds NaN or infinity, expected finite numbers")
        return rows

    def check(self, names: Iterable[str], width: int) -> dict[str, int]:
        """Check presence and shape of many arrays without reading them; returns the rows of each.

        InputError names the first five that are missing or misshapen and counts the rest.
        """
        root = self._open().id
        rows: dict[str, int] = {}
        problems = []
        for name in names:
            try:
                shape: Sequence[int] | None = h5py.h5d.open(root, name.encode()).shape
            except (KeyError, ValueError, RuntimeError, TypeError):
                problems.append(f"{name!r} is missing")
                continue
            try:
                rows[name] = _check_shape(shape, width, repr(name))
            except InputError as error:
                problems.append(str(error))
        if problems:
            raise InputError(f"{self.path}: {summarize(problems)}")
        return rows

    def names(self) -> list[str]:
        """The top-level names in the file."""
        return list(self._open().keys())


def _check_shape(shape: Sequence[int] | None, width: int, what: str) -> int:
    if shape is None:
        raise InputError(f"{what} is a group, expected an array")
    if len(shape) == 3 and shape[0] == 1:
        shape = shape[1:]
    if len(shape) != 2 or shape[1] != width:
        raise InputError(f"{what} has shape {tuple(shape)}, expected (rows, {width})")
    if shape[0] == 0:
        raise InputError(f"{what} has no rows, expected at least one")
    return int(shape[0])
