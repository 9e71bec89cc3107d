"""HDF5 files on a disk that is full from some byte on: an error, no crash, and the old file."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from method.data import hdf5_writer
from method.data.hdf5_writer import atomic_hdf5
from method.runtime.files import atomic_writer


def write(path: Path) -> None:
    with atomic_hdf5(path) as file:
        for number in range(20):
            file[f"folder/{number}/rows"] = np.full((10, 16), number, np.float32)
            file[f"folder/{number}"].attrs["source"] = "x" * 50


class FullDisk:
    """A file on a disk that holds so many bytes."""

    def __init__(self, file: Any, room: int) -> None:
        self._file, self._room = file, room

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, content: Any) -> int:
        self._room -= len(content)
        if self._room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return int(self._file.write(content))


def test_a_file_is_written_whole(tmp_path: Path) -> None:
    write(tmp_path / "new" / "a.hdf5")
    with h5py.File(tmp_path / "new" / "a.hdf5") as file:
        assert len(file["folder"]) == 20
        assert np.array_equal(file["folder/7/rows"], np.full((10, 16), 7))
    with pytest.raises(ZeroDivisionError), atomic_hdf5(tmp_path / "new" / "a.hdf5") as file:
        file["x"] = 1 / 0
    with h5py.File(tmp_path / "new" / "a.hdf5") as file:
        assert list(file) == ["folder"]


@pytest.mark.parametrize("room", [0, 500, 3_000, 9_000, 20_000])
def test_a_full_disk_is_an_error_and_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    path = tmp_path / "a.hdf5"
    path.write_bytes(b"old")

    @contextlib.contextmanager
    def on_a_full_disk(target: Path) -> Iterator[Any]:
        with atomic_writer(target) as file:
            yield FullDisk(file, room)

    monkeypatch.setattr(hdf5_writer, "atomic_writer", on_a_full_disk)
    with pytest.raises(OSError, match="No space left on device"):
        write(path)
    assert [(left.name, left.read_bytes()) for left in tmp_path.iterdir()] == [("a.hdf5", b"old")]
