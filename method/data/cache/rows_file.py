"""A packed table: the rows of many items in one file, written at once, checked by its sums and read item by item.

    the rows of all items, one item after the other: float32, D wide, little-endian
    the index, JSON: what the file was made from, and of each item the id, the number of rows and their CRC-32
    magic (8 bytes) | bytes of the index (uint64) | SHA-256 of the index (32 bytes)

Rows are read by `preadv` straight into a batch. A mapped file would be as fast, but a disk that fails or a file that is
cut off would then kill the process instead of being an error.
"""

from __future__ import annotations

import hashlib
import json
import logging
import mmap
import os
import struct
import weakref
import zlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from method.data.dataset import HDF5Source
from method.data.preprocessing import FloatRows
from method.data.ragged import Layout, Ragged
from method.data.shared_memory import allocate_rows
from method.runtime.errors import InputError
from method.runtime.files import atomic_writer

log = logging.getLogger(__name__)

_MAGIC = b"A3PROWS\x01"
_TRAILER = struct.Struct("<8sQ32s")
_BYTES = 4  # float32


class PackedRows:
    """A packed table that is open for reading.

    Every item is compared with its checksum when it is read for the first time, by this process or one forked from it.

    made_from: what `write_rows` was told. ids: the items in their order. width: D.

    Raises:
        InputError: for a file that is not a packed table, or one that is cut off or damaged in its index.
        OSError: for a file that is not there or cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)
        index = _read_index(self._descriptor, path)
        self.made_from: dict[str, Any] = index["made_from"]
        self.width: int = index["width"]
        self.ids: list[str] = index["ids"]
        self._rows: list[int] = index["rows"]
        self._sums: list[int] = index["sums"]
        self._starts = list(accumulate(self._rows, initial=0))
        self._place = {item_id: place for place, item_id in enumerate(self.ids)}
        # Shared with the processes that are forked from here, so that an item is checked once and not once in each.
        self._checked = memoryview(mmap.mmap(-1, len(self.ids) + 1))

    def __reduce__(self) -> tuple[Any, ...]:
        return _open_again, (self.path, self.made_from)

    def __contains__(self, item_id: object) -> bool:
        return item_id in self._place

    def lengths(self, ids: Sequence[str]) -> list[int]:
        """Rows of each of these items."""
        return [self._rows[self._place[item_id]] for item_id in ids]

    def read_into(self, item_id: str, rows_nD: FloatRows) -> bool:
        """Fill contiguous rows with those of an item; False when the file does not give them as they were written."""
        place = self._place[item_id]
        start, missing = self._starts[place] * self.width * _BYTES, rows_nD.data.cast("B")
        try:
            while missing:
                count = os.preadv(self._descriptor, [missing], start)
                if not count:
                    return False
                start, missing = start + count, missing[count:]
        except OSError:
            return False
        if not self._checked[place]:
            if zlib.crc32(rows_nD.data) != self._sums[place]:
                return False
            self._checked[place] = 1
        return True

    def forget(self) -> bool:
        """Remove the file, if it still is the one that was opened; whether this was the first call in any process."""
        first, self._checked[-1] = not self._checked[-1], 1
        try:
            if os.path.samestat(os.stat(self.path), os.fstat(self._descriptor)):
                os.unlink(self.path)
        except OSError:  # it has gone already, or lies where nothing can be removed
            pass
        return first


class PackedTable:
    """A table of the cache; an item that is damaged there is read from the feature file."""

    def __init__(self, rows: PackedRows, stored: HDF5Source) -> None:
        self._rows = rows
        self._stored = stored

    def gather(self, ids: Sequence[str]) -> Ragged:
        """The rows of these items, one item after the other."""
        lengths = self._rows.lengths(ids)
        values_ND = allocate_rows(sum(lengths), self._rows.width)
        rows_ND, end = values_ND.numpy(), 0
        for item_id, length in zip(ids, lengths, strict=True):
            start, end = end, end + length
            if not self._rows.read_into(item_id, rows_ND[start:end]):
                rows_ND[start:end] = self._instead(item_id, length)
        return Ragged(values_ND, Layout.of(lengths))

    def _instead(self, item_id: str, length: int) -> FloatRows:
        source = self._stored.file.path
        if self._rows.forget():
            log.warning("%s: damaged at %r, which is read from %s; the next run makes it anew",
                        self._rows.path, item_id, source)  # fmt: skip
        rows_nD: FloatRows = self._stored.read(item_id).numpy()
        if len(rows_nD) != length:
            raise InputError(f"{source}: {item_id!r} has changed since it was cached; start the run again")
        return rows_nD


def _open_again(path: Path, made_from: Mapping[str, Any]) -> PackedRows:
    rows = PackedRows(path)
    if rows.made_from != made_from:
        raise InputError(f"{path}: replaced while it was in use")
    return rows


def write_rows(
    path: Path, made_from: Mapping[str, Any], ids: Sequence[str], width: int, batches: Iterable[Ragged]
) -> None:
    """Write a packed table whole or not at all.

    Args:
        path: the file.
        made_from: what its content depends on, as JSON has it.
        ids: the items.
        width: D.
        batches: the rows of the items, a few items at a time, in their order.
    """
    rows: list[int] = []
    sums: list[int] = []
    with atomic_writer(path) as file:
        for batch in batches:
            values_ND = np.ascontiguousarray(batch.values.numpy(), "<f4")
            ends = list(accumulate(batch.layout.lengths, initial=0))
            sums += [zlib.crc32(values_ND[start:end].data) for start, end in pairwise(ends)]
            rows += batch.layout.lengths
            file.write(values_ND.data)
        if len(rows) != len(ids):
            raise ValueError(f"rows of {len(rows)} items for {len(ids)} ids")
        content = {"made_from": dict(made_from), "width": width, "ids": list(ids), "rows": rows, "sums": sums}
        index = json.dumps(content).encode()
        file.write(index + _TRAILER.pack(_MAGIC, len(index), hashlib.sha256(index).digest()))


def _read_index(descriptor: int, path: Path) -> dict[str, Any]:
    size = os.fstat(descriptor).st_size
    trailer = os.pread(descriptor, _TRAILER.size, max(0, size - _TRAILER.size))
    if len(trailer) < _TRAILER.size or not trailer.startswith(_MAGIC):
        raise InputError(f"{path}: not a packed table, or one that was cut off")
    _, length, digest = _TRAILER.unpack(trailer)
    first = size - _TRAILER.size - length
    stored = os.pread(descriptor, length, first) if first >= 0 else b""
    if hashlib.sha256(stored).digest() != digest:
        raise InputError(f"{path}: its index is damaged")
    index: dict[str, Any] = json.loads(stored)
    if sum(index["rows"]) * index["width"] * _BYTES != first:
        raise InputError(f"{path}: {first} bytes of rows, expected {sum(index['rows']) * index['width'] * _BYTES}")
    return index
