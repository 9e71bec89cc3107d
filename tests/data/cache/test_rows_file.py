"""Rows files: what was written is read, and corruption is noticed."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from method.data.cache.rows_file import RowsFile, write_rows
from method.data.ragged import Ragged
from method.runtime.errors import InputError
from method.runtime.files import sha256

WIDTH = 5
LENGTHS = {"a": 3, "video b": 1, "#": 7, "ü": 2}


def rows_of(item_id: str) -> torch.Tensor:
    return torch.rand(LENGTHS[item_id], WIDTH, generator=torch.Generator().manual_seed(ord(item_id[0])))


def write(path: Path, dtype: Any = np.float32) -> Path:
    batches = [Ragged.of([rows_of("a")]), Ragged.of([rows_of(item_id) for item_id in ("video b", "#", "ü")])]
    write_rows(path, {"size": 3}, list(LENGTHS), WIDTH, batches, dtype)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "table.rows")


def read(rows: RowsFile, item_id: str) -> torch.Tensor | None:
    values = np.full((LENGTHS[item_id], WIDTH), np.nan, rows.dtype)
    return torch.from_numpy(values) if rows.read_into(item_id, values) else None


def flip_bit(path: Path, byte: int = 0) -> None:
    with path.open("r+b") as file:
        file.seek(byte)
        value = file.read(1)[0]
        file.seek(byte)
        file.write(bytes([value ^ 0x10]))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_what_was_written_is_read(path: Path, dtype: Any) -> None:
    rows = RowsFile(write(path, dtype))
    assert (rows.fingerprint, rows.ids, rows.width, rows.dtype) == ({"size": 3}, list(LENGTHS), WIDTH, dtype)
    assert rows.lengths_of(["ü", "a"]) == [2, 3]
    assert "#" in rows
    assert "b" not in rows
    for _ in range(2):  # with and without verification of checksums
        for item_id in reversed(LENGTHS):
            values = read(rows, item_id)
            assert values is not None
            assert torch.equal(values, rows_of(item_id).to(values.dtype))
    assert rows.is_intact()


def test_files_of_single_precision_keep_their_bytes(tmp_path: Path) -> None:
    """Existing feature caches stay valid."""
    batches = [Ragged.of([torch.arange(2 * n, dtype=torch.float32).reshape(n, 2) / 3]) for n in (3, 2)]
    write_rows(tmp_path / "table.rows", {"size": 3}, ["a", "ü"], 2, batches)
    assert sha256(tmp_path / "table.rows") == "1d6e2f0dd884b0cb77c1c2010e45917609e4629096c6d9dfab68a3870f771f95"


def test_a_failed_write_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rows of 1 items for 2 ids"):
        write_rows(tmp_path / "table.rows", {}, ["a", "b"], WIDTH, [Ragged.of([rows_of("a")])])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_every_changed_byte_is_noticed(path: Path, dtype: Any) -> None:
    """Either the file is refused or only the item with that byte is corrupt."""
    whole = write(path, dtype).read_bytes()
    refused = corrupt = 0
    for byte in range(0, len(whole), 3):
        path.write_bytes(whole)
        flip_bit(path, byte)
        try:
            rows = RowsFile(path)
        except InputError as error:
            refused += str(error).startswith(str(path))
            continue
        values = {item_id: read(rows, item_id) for item_id in LENGTHS}
        corrupt += [value is None for value in values.values()].count(True) == 1
        assert all(value is None or torch.equal(value, rows_of(i).to(value.dtype)) for i, value in values.items())
        assert not RowsFile(path).is_intact()
    size_of_rows = sum(LENGTHS.values()) * WIDTH * np.dtype(dtype).itemsize
    assert corrupt == len(range(0, size_of_rows, 3))
    assert refused + corrupt == len(range(0, len(whole), 3))


def test_truncated_and_other_files_are_refused(path: Path) -> None:
    whole = path.read_bytes()
    for content in (b"", whole[:100], whole[:-1], whole[1:], whole[:-48], whole + b"\0", b"x" * 500, whole[-48:]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"table\.rows: "):
            RowsFile(path)


def test_truncated_while_in_use(path: Path) -> None:
    """No SIGBUS, as with a memory-mapped file."""
    rows = RowsFile(path)
    os.truncate(path, 4 * WIDTH * 4)
    assert read(rows, "a") is not None
    assert read(rows, "#") is None


def test_a_checksum_is_verified_once(path: Path) -> None:
    rows = RowsFile(path)
    assert read(rows, "a") is not None
    flip_bit(path)
    assert read(rows, "a") is not None
    assert read(RowsFile(path), "a") is None


def test_forked_processes_share_what_is_verified(path: Path) -> None:
    rows = RowsFile(path)
    child = os.fork()
    if not child:
        os._exit(read(rows, "a") is None)
    assert os.waitpid(child, 0)[1] == 0
    flip_bit(path)
    flip_bit(path, 3 * WIDTH * 4)
    assert read(rows, "a") is not None
    assert read(rows, "video b") is None


def test_a_file_that_was_replaced_is_not_removed(path: Path) -> None:
    rows = RowsFile(path)
    path.rename(path.with_name("old"))
    path.write_bytes(b"of another process")
    assert rows.remove()
    assert path.exists()
    path.with_name("old").rename(path)
    assert not rows.remove()  # not the first call
    assert not path.exists()
    assert read(rows, "a") is not None


def test_unpickled_it_opens_the_same_file_or_none(path: Path) -> None:
    rows = RowsFile(path)
    values = read(pickle.loads(pickle.dumps(rows)), "#")
    assert values is not None
    assert torch.equal(values, rows_of("#"))
    pickled = pickle.dumps(rows)
    write_rows(path, {"size": 4}, ["a"], WIDTH, [Ragged.of([rows_of("a")])])
    with pytest.raises(InputError, match="replaced while in use"):
        pickle.loads(pickled)
