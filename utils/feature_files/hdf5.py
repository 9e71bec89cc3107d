"""Write features to an HDF5 file in this program's layout: whole or not at all, and read back."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import h5py
import numpy as np

from method.data.preprocessing import FloatRows
from method.runtime.disk import flush_to_disk, format_bytes
from method.runtime.errors import InputError, shown
from method.runtime.hub.fetch import check_space
from method.runtime.locks import exclusive_lock
from method.runtime.progress import progress_bar

log = logging.getLogger(__name__)


class Source(Protocol):
    """Features of items by id."""

    ids: Sequence[str]
    width: int

    @property
    def bytes(self) -> int:
        """About the bytes of all features."""

    def where(self, item_id: str) -> str:
        """What to name in a message about an item."""

    def read(self, item_id: str) -> FloatRows:
        """The features of an item, (n, width)."""


def write_features(target: Path, source: Source, name_of: Callable[[str], str], *, add: bool = False) -> None:
    """Write the features of a source to an HDF5 file, which appears when it is complete and has been read back.

    A killed process leaves a hidden file beside the target, which the next one replaces.

    Args:
        target: the file; it must not exist, except with `add`.
        source: what to write.
        name_of: name of an item's array by its id.
        add: keep what the file holds already; it is copied first, so that it stays whole.

    Raises:
        InputError: for a target that exists or lacks, an array that it has already, features that are not finite or of
            different widths, a full disk, and content that differs when it is read back.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    busy = f"{target}: another process is writing it"
    with exclusive_lock(target.with_name(f".{target.name}.lock"), busy, wait=False):
        if target.exists() and not add:
            raise InputError(f"{target}: exists already; --add adds a stream to it")
        if add and not target.is_file():
            raise InputError(f"{target}: no such file, expected one to add to; without --add a new one is written")
        partial = target.with_name(f".{target.name}.part")
        partial.unlink(missing_ok=True)
        before = target.stat().st_size if add else 0
        check_space({partial: before + source.bytes})
        log.info("%s: %d arrays of width %d, %s", target, len(source.ids), source.width, format_bytes(source.bytes))
        try:
            if add:
                shutil.copyfile(target, partial)
            with _errors(target), h5py.File(partial, "r+" if add else "w", locking=False) as file:
                _write(file, target, source, name_of)
            with _errors(target), h5py.File(partial, "r", locking=False) as file:
                _compare(file, target, source, name_of)
            with partial.open("rb") as written:
                flush_to_disk(written.fileno())
            os.replace(partial, target)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def _write(file: h5py.File, target: Path, source: Source, name_of: Callable[[str], str]) -> None:
    for item_id in progress_bar(source.ids, "writing", "item"):
        name = name_of(item_id)
        if name in file:
            raise InputError(f"{target}: has {shown(name)} already")
        rows_nD = source.read(item_id)
        if rows_nD.shape[1] != source.width:
            raise InputError(f"{source.where(item_id)}: width {rows_nD.shape[1]}, expected {source.width} as before")
        if not np.isfinite(rows_nD).all():
            row = int(np.flatnonzero(~np.isfinite(rows_nD).all(axis=1))[0])
            raise InputError(f"{source.where(item_id)}: row {row} holds NaN or infinity, expected finite numbers")
        file.create_dataset(name, data=rows_nD)


def _compare(file: h5py.File, target: Path, source: Source, name_of: Callable[[str], str]) -> None:
    for item_id in progress_bar(source.ids, "reading back", "item"):
        name, expected_nD = name_of(item_id), source.read(item_id)
        found = file[name]
        if (
            found.dtype != np.float32
            or found.shape != expected_nD.shape
            or found[()].tobytes() != expected_nD.tobytes()
        ):
            raise InputError(f"{target}: {shown(name)} differs from {source.where(item_id)} when read back; try again")


@contextlib.contextmanager
def _errors(target: Path) -> Iterator[None]:
    """Raise what HDF5 reports, such as a full disk, as InputError."""
    try:
        yield
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        of_system = re.search(r"error message = '([^']+)'", str(error))
        reason = of_system[1] if of_system else str(error)
        raise InputError(f"{target}: cannot be written ({reason})") from error
