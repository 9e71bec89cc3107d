"""A block of a cache of encoded edits: one file that is written at once, checked by its sums and read by mapping it.

    magic (8 bytes) | origin (uint64) | number of edits, checksum of the records (2 x uint32)
    a record for each edit
    the rows of each edit: float16, D wide

Origin is a number for what the cache is made from. Numbers are little-endian. The records are in the order of captions,
then kinds, then words.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from method.data.mapped import map_array
from method.runtime.errors import InputError
from method.runtime.files import atomic_writer, require_file

Rows = npt.NDArray[np.float16]

# caption: its number among the captions of the cache; kind: its number in KINDS; word: number of the replaced word;
# rows: how many rows of features; sum: their CRC-32.
RECORD = np.dtype([("caption", "<u4"), ("kind", "<u1"), ("word", "<u2"), ("rows", "<u2"), ("sum", "<u4")])
_MAGIC = b"A3PNEG\x00\x01"
_HEADER = np.dtype([("magic", "S8"), ("origin", "<u8"), ("edits", "<u4"), ("sum", "<u4")])


@dataclass(frozen=True)
class Block:
    """What a block file holds: one record for each edit, and where in the file the rows start (bytes)."""

    path: Path
    records: npt.NDArray[np.void]
    start: int
    width: int

    def map_rows(self) -> Rows:
        """All rows of the block, (N, D), mapped and not read; InputError when the file has changed since."""
        count = int(self.records["rows"].sum(dtype=np.int64))
        if not count:
            return np.empty((0, self.width), np.float16)
        try:
            return map_array(self.path, "<f2", (count, self.width), self.start)
        except (OSError, ValueError) as error:
            raise InputError(f"{self.path}: cannot be read any more ({error})") from error

    def is_whole(self) -> bool:
        """Whether the rows of every edit have their checksum; reads the whole file."""
        rows = self.map_rows()
        ends = np.cumsum(self.records["rows"], dtype=np.int64)
        return all(
            checksum(rows[end - record["rows"] : end]) == record["sum"]
            for record, end in zip(self.records, ends.tolist(), strict=True)
        )


def checksum(rows: Rows) -> int:
    """CRC-32 of the bytes of contiguous rows."""
    return zlib.crc32(rows.data)


def write_block(path: Path, origin: int, records: Sequence[tuple[int, int, int, int]], rows_ND: Rows) -> None:
    """Write a block whole or not at all.

    Args:
        path: the file.
        origin: a number for what the cache is made from.
        records: caption, kind, word and number of rows of each edit.
        rows_ND: the rows of all edits, one after the other.
    """
    rows_ND = np.ascontiguousarray(rows_ND, "<f2")
    stored = np.zeros(len(records), RECORD)
    end = 0
    for number, record in enumerate(records):
        start, end = end, end + record[-1]
        stored[number] = (*record, checksum(rows_ND[start:end]))
    if end != len(rows_ND):
        raise ValueError(f"the records count {end} rows, there are {len(rows_ND)}")
    header = np.array((_MAGIC, origin, len(stored), zlib.crc32(stored.tobytes())), _HEADER)
    with atomic_writer(path) as file:
        file.write(header.tobytes() + stored.tobytes())
        file.write(rows_ND.data)


def read_block(path: Path, origin: int, width: int) -> Block:
    """Read the records of a block; InputError when it is missing, cut off, damaged there or of another origin."""
    require_file(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(_HEADER.itemsize)
            if len(start) < _HEADER.itemsize or start[: len(_MAGIC)] != _MAGIC:
                raise InputError(f"{path}: not a block of encoded edits")
            header = np.frombuffer(start, _HEADER)[0]
            stored = file.read(min(int(header["edits"]) * RECORD.itemsize, size))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    if zlib.crc32(stored) != header["sum"] or len(stored) != int(header["edits"]) * RECORD.itemsize:
        raise InputError(f"{path}: its records are damaged")
    if header["origin"] != origin:
        raise InputError(f"{path}: a block of another cache")
    records = np.frombuffer(stored, RECORD)
    first = _HEADER.itemsize + len(stored)
    expected = first + int(records["rows"].sum(dtype=np.int64)) * width * 2
    if size != expected:
        raise InputError(f"{path}: {size} bytes, expected {expected}")
    return Block(path, records, first, width)
