from pathlib import Path

import numpy as np
import pytest

from method.negatives.blocks import Block, Rows, read_block, write_block
from method.runtime.errors import InputError

WIDTH = 4
RECORDS = [(0, 0, 0, 3), (0, 1, 2, 1), (5, 0, 0, 2)]


def rows() -> Rows:
    return np.random.default_rng(0).standard_normal((6, WIDTH)).astype(np.float16)


def written(tmp_path: Path) -> Block:
    write_block(tmp_path / "block", 7, RECORDS, rows())
    return read_block(tmp_path / "block", 7, WIDTH)


def test_reads_what_was_written(tmp_path: Path) -> None:
    block = written(tmp_path)
    assert [tuple(record)[:4] for record in block.records.tolist()] == RECORDS
    assert np.array_equal(block.map_rows(), rows())
    assert block.is_whole()


def test_a_block_without_edits(tmp_path: Path) -> None:
    write_block(tmp_path / "block", 7, [], np.empty((0, WIDTH), np.float16))
    block = read_block(tmp_path / "block", 7, WIDTH)
    assert (len(block.records), block.map_rows().shape, block.is_whole()) == (0, (0, WIDTH), True)


def test_every_changed_byte_and_every_cut_is_noticed(tmp_path: Path) -> None:
    path = written(tmp_path).path
    whole = path.read_bytes()
    broken = [whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :] for place in range(len(whole))]
    broken += [whole[:size] for size in range(len(whole))] + [whole + b"\0"]
    for content in broken:
        path.write_bytes(content)
        assert not can_be_used(path)


def can_be_used(path: Path) -> bool:
    try:
        return read_block(path, 7, WIDTH).is_whole()
    except InputError:
        return False


@pytest.mark.parametrize(("origin", "width", "named"), [(8, WIDTH, "another cache"), (7, 5, "bytes, expected")])
def test_refuses_a_block_of_something_else(tmp_path: Path, origin: int, width: int, named: str) -> None:
    path = written(tmp_path).path
    with pytest.raises(InputError, match=named):
        read_block(path, origin, width)


def test_a_missing_block_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere: no such file"):
        read_block(tmp_path / "nowhere", 7, WIDTH)


def test_records_must_count_the_rows(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="count 6 rows, there are 5"):
        write_block(tmp_path / "block", 7, RECORDS, rows()[:5])
    assert not list(tmp_path.iterdir())
