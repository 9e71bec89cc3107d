"""A rows file: the rows of many items in one file, with a checksum for each item.

    rows of all items, one item after the other: float32 or float16, D wide, little-endian
    index, JSON at the end: fingerprint of what the file was built from; id, number of rows and CRC-32 of each item

It is written atomically. Rows are read by `preadv` straight into a batch. A memory-mapped file would be as fast, but
then a failing disk or a truncated file kills the process instead of raising an error.
"""

from __future__ import annotations

import mmap
import os
import weakref
import zlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from method.data.ragged import Ragged
from method.runtime.errors import InputError
from method.runtime.files import atomic_writer
from method.runtime.json_trailer import read_trailer, trailer_of

Rows = npt.NDArray[np.floating[Any]]

_MAGIC = b"A3PROWS\x01"
_DTYPES = ("float32", "float16")


class RowsFile:
    """A rows file that is open for reading.

    The checksum of an item is verified the first time that this process, or one forked from it, reads the item.

    fingerprint: what the file was built from, as given to `write_rows`.
    ids: the items in file order. width: D. dtype: of the rows.
    lengths, offsets, checksums: number of rows, first byte and CRC-32 of each item, in file order.

    Raises:
        InputError: if it is not a rows file, truncated, or corrupt in its index.
        OSError: if it is missing or cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # Without O_NONBLOCK, a pipe in its place would be waited for.
        self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        weakref.finalize(self, os.close, self._descriptor)
        index = _read_index(self._descriptor, path)
        self.fingerprint: dict[str, Any] = index["made_from"]
        self.ids: list[str] = index["ids"]
        self.width: int = index["width"]
        self.dtype = _stored_dtype(index)
        self.lengths = np.array(index["rows"], np.int64)
        self.checksums = np.array(index["sums"], np.uint32)
        self.offsets = (np.cumsum(self.lengths) - self.lengths) * self.width * self.dtype.itemsize
        self._numbers = {item_id: number for number, item_id in enumerate(self.ids)}
        # Shared with forked processes, so that an item is verified once in all and not once in each.
        self._verified = memoryview(mmap.mmap(-1, len(self.ids) + 1))

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.path, self.fingerprint)

    def __contains__(self, item_id: object) -> bool:
        return item_id in self._numbers

    def lengths_of(self, ids: Sequence[str]) -> list[int]:
        """Number of rows of each of these items."""
        return [int(self.lengths[self._numbers[item_id]]) for item_id in ids]

    def read_into(self, item_id: str, rows_nD: Rows) -> bool:
        """Fill a contiguous array with the rows of an item; False if they cannot be read or are corrupt."""
        number = self._numbers[item_id]
        if not read_exactly(self._descriptor, int(self.offsets[number]), rows_nD):
            return False
        if not self._verified[number]:
            if zlib.crc32(rows_nD.data) != self.checksums[number]:
                return False
            self._verified[number] = 1
        return True

    def is_intact(self) -> bool:
        """Whether the rows of all items have their checksum; reads the whole file."""
        return all(
            self.read_into(item_id, np.empty((length, self.width), self.dtype))
            for item_id, length in zip(self.ids, self.lengths, strict=True)
        )

    def remove(self) -> bool:
        """Delete the file unless it has been replaced; True for the first call in any forked process."""
        is_first, self._verified[-1] = not self._verified[-1], 1
        try:
            if os.path.samestat(os.stat(self.path), os.fstat(self._descriptor)):
                os.unlink(self.path)
        except OSError:  # already deleted, or in a read-only folder
            pass
        return is_first


def _reopen(path: Path, fingerprint: Mapping[str, Any]) -> RowsFile:
    rows = RowsFile(path)
    if rows.fingerprint != fingerprint:
        raise InputError(f"{path}: replaced while in use")
    return rows


def read_exactly(descriptor: int, offset: int, rows_nD: Rows) -> bool:
    """Fill a contiguous array with the bytes of a file from `offset` on; False if the file does not yield them."""
    missing = rows_nD.data.cast("B")
    try:
        while missing:
            count = os.preadv(descriptor, [missing], offset)
            if not count:
                return False
            offset, missing = offset + count, missing[count:]
    except OSError:
        return False
    return True


def write_rows(
    path: Path,
    fingerprint: Mapping[str, Any],
    ids: Sequence[str],
    width: int,
    batches: Iterable[Ragged],
    dtype: npt.DTypeLike = np.float32,
) -> None:
    """Write a rows file atomically.

    Args:
        path: the file.
        fingerprint: what its content depends on, as JSON values.
        ids: the items, each different.
        width: D.
        batches: the rows of the items, in their order, a few items at a time.
        dtype: float32 or float16, to which rows are converted.
    """
    dtype = np.dtype(dtype).newbyteorder("<")
    rows: list[int] = []
    sums: list[int] = []
    with atomic_writer(path) as file:
        for batch in batches:
            values_ND = np.ascontiguousarray(batch.values.numpy(), dtype)
            ends = list(accumulate(batch.layout.lengths, initial=0))
            sums += [zlib.crc32(values_ND[start:end].data) for start, end in pairwise(ends)]
            rows += batch.layout.lengths
            file.write(values_ND.data)
        if len(rows) != len(ids):
            raise ValueError(f"rows of {len(rows)} items for {len(ids)} ids")
        content = {"made_from": dict(fingerprint), "width": width, "ids": list(ids), "rows": rows, "sums": sums}
        if dtype.name != "float32":  # files from before there was a choice lack it
            content["dtype"] = dtype.name
        file.write(trailer_of(_MAGIC, content))


def _read_index(descriptor: int, path: Path) -> dict[str, Any]:
    try:
        index, start = read_trailer(descriptor, _MAGIC)
    except LookupError:
        raise InputError(f"{path}: not a rows file, or truncated") from None
    except ValueError:
        raise InputError(f"{path}: its index is corrupt") from None
    if index.get("dtype", _DTYPES[0]) not in _DTYPES:
        raise InputError(f"{path}: rows of type {index['dtype']}, expected {' or '.join(_DTYPES)}")
    expected = sum(index["rows"]) * index["width"] * _stored_dtype(index).itemsize
    if expected != start:
        raise InputError(f"{path}: {start} bytes of rows, expected {expected}")
    return index


def _stored_dtype(index: Mapping[str, Any]) -> np.dtype[Any]:
    return np.dtype(index.get("dtype", _DTYPES[0])).newbyteorder("<")
