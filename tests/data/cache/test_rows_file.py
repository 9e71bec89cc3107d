"""A packed table: the rows that were put in, or noticed damage."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from method.data.cache.rows_file import PackedRows, write_rows
from method.data.ragged import Ragged
from method.runtime.errors import InputError

WIDTH = 5
LENGTHS = {"a": 3, "video b": 1, "#": 7, "ü": 2}


def rows_of(item_id: str) -> torch.Tensor:
    return torch.rand(LENGTHS[item_id], WIDTH, generator=torch.Generator().manual_seed(ord(item_id[0])))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "table.rows"
    batches = [Ragged.of([rows_of("a")]), Ragged.of([rows_of(item_id) for item_id in ("video b", "#", "ü")])]
    write_rows(path, {"size": 3}, list(LENGTHS), WIDTH, batches)
    return path


def read(rows: PackedRows, item_id: str) -> torch.Tensor | None:
    found = np.full((LENGTHS[item_id], WIDTH), np.nan, np.float32)
    return torch.from_numpy(found) if rows.read_into(item_id, found) else None


def test_what_was_written_is_read(path: Path) -> None:
    rows = PackedRows(path)
    assert (rows.made_from, rows.ids, rows.width) == ({"size": 3}, list(LENGTHS), WIDTH)
    assert rows.lengths(["ü", "a"]) == [2, 3]
    assert "#" in rows
    assert "b" not in rows
    for _ in range(2):  # with and without the comparison of checksums
        for item_id in reversed(LENGTHS):
            found = read(rows, item_id)
            assert found is not None
            assert torch.equal(found, rows_of(item_id))


def test_nothing_half_written_is_left(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rows of 1 items for 2 ids"):
        write_rows(tmp_path / "table.rows", {}, ["a", "b"], WIDTH, [Ragged.of([rows_of("a")])])
    assert not list(tmp_path.iterdir())


def test_every_damaged_byte_is_noticed(path: Path) -> None:
    """Whichever byte is another: the file is refused, or just the item that has it; the others are as they were."""
    whole = path.read_bytes()
    refused = damaged = 0
    for place in range(0, len(whole), 3):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        try:
            rows = PackedRows(path)
        except InputError as error:
            refused += str(error).startswith(str(path))
            continue
        found = {item_id: read(rows, item_id) for item_id in LENGTHS}
        damaged += [value is None for value in found.values()].count(True) == 1
        assert all(value is None or torch.equal(value, rows_of(item_id)) for item_id, value in found.items())
    size_of_rows = sum(LENGTHS.values()) * WIDTH * 4
    assert damaged == len(range(0, size_of_rows, 3))
    assert refused + damaged == len(range(0, len(whole), 3))


def test_a_file_that_is_cut_off_or_another(path: Path) -> None:
    whole = path.read_bytes()
    for content in (b"", whole[:100], whole[:-1], whole[1:], whole[:-48], whole + b"\0", b"x" * 500, whole[-48:]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"table\.rows: "):
            PackedRows(path)


def test_cut_off_while_in_use(path: Path) -> None:
    """No signal that ends the process, as a mapped file would give."""
    rows = PackedRows(path)
    os.truncate(path, 4 * WIDTH * 4)
    assert read(rows, "a") is not None
    assert read(rows, "#") is None


def test_a_checksum_is_compared_once(path: Path) -> None:
    rows = PackedRows(path)
    assert read(rows, "a") is not None
    whole = bytearray(path.read_bytes())
    whole[0] ^= 1
    with path.open("r+b") as file:
        file.write(whole)
    assert read(rows, "a") is not None
    assert read(PackedRows(path), "a") is None


def test_what_one_process_has_checked_the_others_need_not(path: Path) -> None:
    rows = PackedRows(path)
    child = os.fork()
    if not child:
        os._exit(read(rows, "a") is None)
    assert os.waitpid(child, 0)[1] == 0
    assert list(rows._checked) == [1, 0, 0, 0, 0]


def test_forgetting_removes_only_the_own_file(path: Path) -> None:
    rows = PackedRows(path)
    path.rename(path.with_name("old"))
    path.write_bytes(b"of another process")
    assert rows.forget()
    assert path.exists()
    path.with_name("old").rename(path)
    assert not rows.forget()  # said once
    assert not path.exists()
    assert read(rows, "a") is not None


def test_another_process_opens_it_by_its_path(path: Path) -> None:
    rows = PackedRows(path)
    copy = pickle.loads(pickle.dumps(rows))
    found = read(copy, "#")
    assert found is not None
    assert torch.equal(found, rows_of("#"))
    stored = pickle.dumps(rows)
    write_rows(path, {"size": 4}, ["a"], WIDTH, [Ragged.of([rows_of("a")])])
    with pytest.raises(InputError, match="replaced while it was in use"):
        pickle.loads(stored)
