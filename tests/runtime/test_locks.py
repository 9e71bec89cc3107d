"""A lock is held by one process, and is released however that process ends."""

import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

from method.runtime.errors import InputError
from method.runtime.locks import exclusive_lock
from tests.helpers.paths import REPOSITORY
from tests.helpers.poor_disk import LOCKS, refuse_locks


def test_a_lock_is_for_one_and_free_again(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    for _ in range(2):
        with (
            exclusive_lock(path, "taken", wait=False),
            pytest.raises(InputError, match=r"^taken$"),
            exclusive_lock(path, "taken", wait=False),
        ):
            pass


def test_who_waits_says_so_once_and_may_give_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Enough(Exception):
        pass

    polled: list[None] = []

    def poll() -> None:
        polled.append(None)
        if len(polled) == 3:
            raise Enough

    caplog.set_level("INFO")
    path = tmp_path / ".lock"
    with exclusive_lock(path, ""), pytest.raises(Enough), exclusive_lock(path, "x", poll=poll):
        pass
    assert caplog.messages == ["x"]


def test_a_lock_of_a_file_that_was_moved_to_its_place_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process does so between our opening and locking."""
    flock = fcntl.flock

    def late(descriptor: int, operation: int) -> None:
        (tmp_path / "partial").replace(tmp_path / "whole")
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(InputError, match="taken"), exclusive_lock(tmp_path / "partial", "taken", wait=False):
        pass


def test_a_forked_process_neither_keeps_a_lock_nor_releases_it(tmp_path: Path) -> None:
    code = """if True:
        import os, sys
        from pathlib import Path
        from method.runtime.errors import InputError
        from method.runtime.locks import exclusive_lock
        path = Path(sys.argv[1])
        with exclusive_lock(path, "taken", wait=False):
            child = os.fork()
            if child:
                assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
                try:
                    with exclusive_lock(path, "taken", wait=False):
                        print("free")
                except InputError as error:
                    print(error)"""
    command = [sys.executable, "-c", code, str(tmp_path / ".lock")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "taken\n"


@pytest.mark.parametrize("error", LOCKS)
def test_without_locks_it_warns_once_and_goes_on(
    tmp_path: Path, error: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    refuse_locks(monkeypatch, error)
    passed = 0
    for _ in range(2):
        for wait in (True, False):
            with exclusive_lock(tmp_path / ".lock", "taken", wait=wait):
                passed += 1
    assert passed == 4
    (message,) = caplog.messages
    assert message.startswith(f"{tmp_path}: this file system has no file locks (")
