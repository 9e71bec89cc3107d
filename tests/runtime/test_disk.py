"""File systems that lack operations lose no content, and a failing disk is an error."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from method.runtime import disk
from method.runtime.disk import free_bytes, move
from method.runtime.files import atomic_folder, write_text
from tests.helpers.poor_disk import refuse_all


@pytest.mark.parametrize("error", ["ENOSYS", "EPERM", "EINVAL", "EOPNOTSUPP"])
def test_what_the_content_does_not_depend_on_may_be_refused(
    tmp_path: Path, error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_all(monkeypatch, error)
    write_text(tmp_path / "old" / "inner" / "x", "content")
    move(tmp_path / "old", tmp_path / "new")
    with atomic_folder(tmp_path / "other") as folder:
        write_text(folder / "y", "content")
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["new", "inner", "x", "other", "y"]
    assert (tmp_path / "new" / "inner" / "x").read_text() == "content"
    assert free_bytes(tmp_path) == float("inf")


@pytest.mark.parametrize("call", ["fsync", "replace", "chmod"])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_is_an_error(tmp_path: Path, call: str, error: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise OSError(error, os.strerror(error))

    (tmp_path / "file").write_text("old")
    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match=os.strerror(error)) as caught:
        write_text(tmp_path / "file", "new")
    assert caught.value.filename == str(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "old"


def test_a_folder_that_cannot_be_copied_either_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_all(monkeypatch)
    write_text(tmp_path / "old" / "x", "content")

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(OSError, match="full"):
        move(tmp_path / "old", tmp_path / "new")
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["old", "x"]


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "renames"])
def test_a_folder_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool) -> None:
    if not exchange:
        monkeypatch.setattr(disk, "_exchange", lambda one, other: False)
    new, target = tmp_path / ".new", tmp_path / "target"
    new.mkdir()
    (new / "first").touch()
    disk.replace_folder(new, target)
    assert [path.name for path in tmp_path.rglob("*")] == ["target", "first"]
    new.mkdir()
    (new / "second").touch()
    disk.replace_folder(new, target)
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == [".new", "first", "target", "second"]


@pytest.mark.parametrize("killed_after", [1, 2])
def test_a_replacement_that_was_killed_is_finished(tmp_path: Path, killed_after: int) -> None:
    new, target, old = tmp_path / ".new", tmp_path / "target", tmp_path / ".new.old"
    for folder in (new, old) if killed_after == 1 else (target, old):
        folder.mkdir()
        (folder / ("old" if folder == old else "new")).touch()
    disk.restore_folder(new, target)
    assert not old.exists()
    assert [path.name for path in target.iterdir()] == ["old" if killed_after == 1 else "new"]
    assert [path.name for path in new.iterdir()] == ["new" if killed_after == 1 else "old"]


def test_an_exchange_that_fails_is_reported(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    with pytest.raises(FileNotFoundError, match="target"):
        disk.replace_folder(tmp_path / "missing", tmp_path / "target")
