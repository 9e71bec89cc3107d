"""Folders with a NumPy file for each item: `<id>.npy`, or `<id>.npz` with an array of a given name."""

from __future__ import annotations

import logging
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from method.data.preprocessing import FloatRows
from method.runtime.errors import InputError, shown

log = logging.getLogger(__name__)

_SUFFIXES = (".npy", ".npz")


class ArrayFiles:
    """The arrays of a folder, by the names of their files without suffix.

    Args:
        files: id -> file.
        array: name of the array in .npz files; None where they hold one each.
    """

    def __init__(self, files: dict[str, Path], array: str | None = None) -> None:
        self._files = files
        self._array = array
        self._rounded = False
        self.ids: Sequence[str] = list(files)
        self.width = self.read(self.ids[0]).shape[1]

    @property
    def bytes(self) -> int:
        """About the bytes of all arrays; compressed ones have more."""
        return sum(path.stat().st_size for path in self._files.values())

    def where(self, item_id: str) -> str:
        """What to name in a message about an item."""
        return str(self._files[item_id])

    def read(self, item_id: str) -> FloatRows:
        """An array as (n, D) float32; a vector is one row. InputError for anything else than one or two axes."""
        path = self._files[item_id]
        try:
            found = np.load(path, allow_pickle=False)
            if not isinstance(found, np.ndarray):
                with found:
                    found = found[self._name_in(found.files, path)]
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
            raise InputError(f"{path}: not a readable NumPy file ({error})") from error
        if found.ndim not in (1, 2) or not found.size or found.dtype.kind not in "fiu":
            raise InputError(
                f"{path}: {found.dtype} of shape {found.shape}, expected numbers (rows, width) or (width,)"
            )
        if found.dtype.kind != "f" or found.dtype.itemsize > 4:
            if not self._rounded:
                log.warning("%s: %s, rounded to float32 here and in the other files", path, found.dtype)
            self._rounded = True
        with np.errstate(over="ignore"):
            return found.astype(np.float32).reshape(-1, found.shape[-1])

    def _name_in(self, names: list[str], path: Path) -> str:
        if self._array is None and len(names) == 1:
            return names[0]
        if self._array in names:
            return str(self._array)
        wanted = "one array, or --array with one of these" if self._array is None else shown(self._array)
        raise InputError(f"{path}: holds {', '.join(map(shown, names)) or 'no array'}, expected {wanted}")


def array_files(folder: Path) -> dict[str, Path]:
    """The NumPy files of a folder by their names without suffix. InputError for two of one name."""
    files: dict[str, Path] = {}
    for path in sorted(path for path in folder.iterdir() if path.suffix in _SUFFIXES):
        if path.stem in files:
            raise InputError(f"{folder}: {files[path.stem].name} and {path.name}, expected one file for each id")
        files[path.stem] = path
    return files
