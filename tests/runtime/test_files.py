"""Files are whole or absent, whatever happens while they are written."""

import errno
import fcntl
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from method.runtime.errors import InputError
from method.runtime.files import (
    atomic_folder,
    atomic_writer,
    decoded_lines,
    exclusive_lock,
    free_bytes,
    move,
    read_json,
    read_text,
    require_file,
    sha256,
    split_lines,
    write_bytes,
    write_json,
    write_text,
)
from tests.helpers.poor_disk import LOCKS, refuse_all, refuse_locks

REPOSITORY = Path(__file__).resolve().parents[2]


def python(code: str, *arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)


def test_a_file_is_replaced_and_folders_are_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file.txt"
    for text in ("first", "zweite, länger"):
        write_text(path, text)
        assert path.read_text(encoding="utf-8") == text
    assert [entry.name for entry in path.parent.iterdir()] == ["file.txt"]


def test_permissions_are_those_of_a_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    write_text(tmp_path / "ours", "x")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_the_content_is_on_the_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def noted(name: str) -> Any:
        real = getattr(os, name)

        def call(*arguments: Any) -> Any:
            order.append(name)
            return real(*arguments)

        return call

    monkeypatch.setattr(os, "fsync", noted("fsync"))
    monkeypatch.setattr(os, "replace", noted("replace"))
    write_text(tmp_path / "file", "x")
    assert order == ["fsync", "replace", "fsync"]


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), OSError(errno.ENOSPC, "full")])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fill(file: BinaryIO) -> None:
        file.write(b"new" * 10000)
        file.flush()
        raise error

    with pytest.raises(type(error)) as caught:
        write_bytes(path, fill)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    if isinstance(caught.value, OSError):
        assert caught.value.filename == str(path)


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    code = """if True:
        import os, signal, sys
        from pathlib import Path
        from method.runtime.files import atomic_writer
        with atomic_writer(Path(sys.argv[1])) as file:
            file.write(b"new" * 10000)
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)"""
    assert python(code, path).returncode == -signal.SIGKILL
    assert path.read_text() == "old"


def test_a_full_disk_is_one_line_and_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    code = """if True:
        import resource, signal, sys
        from pathlib import Path
        from method.runtime.errors import run_command
        from method.runtime.files import write_text
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        run_command(lambda: write_text(Path(sys.argv[1]), "new" * 1000))"""
    done = python(code, path)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {path}: File too large\n")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError):
        write_text(tmp_path / "file", "x")


def test_two_writers_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with atomic_writer(path) as one, atomic_writer(path) as other:
        one.write(b"one")
        other.write(b"other")
        one.flush()
        assert not path.exists()
    assert path.read_text() == "one"


def test_json_there_and_back(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, None, True], "é": "風"}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == value
    (tmp_path / "bom.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(value).encode())
    assert read_json(tmp_path / "bom.json") == value


def test_json_without_numbers_is_not_written(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", 1)
    for value in (float("nan"), {"a": [float("inf")]}):
        with pytest.raises(ValueError, match="not JSON compliant"):
            write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == 1


@pytest.mark.parametrize("content", [b"", b"{", b"{'a': 1}", b"[" * 100_000],
    ids=["empty", "cut off", "Python", "deep"])  # fmt: skip
def test_what_is_no_json(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"x\.json: not valid JSON"):
        read_json(path)


def test_json_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps("x" * 100))
    with pytest.raises(InputError, match="102 bytes of JSON, expected at most 50"):
        read_json(path, max_bytes=50)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_text_of_any_system_reads_the_same(tmp_path: Path, encoding: str, end: str) -> None:
    content = f"a café{end}{end}風 \u2028b{end}".encode(encoding)
    (tmp_path / "x").write_bytes(content)
    lines = ["a café", "", "風 \u2028b"]
    assert split_lines(read_text(tmp_path / "x")) == [*lines, ""]
    found = [(number, line) for number, line, error in decoded_lines(io.BytesIO(content)) if not error]
    assert found == list(enumerate(lines, start=1))
    (tmp_path / "x.json").write_bytes(f'{{"é":{end} 1}}'.encode(encoding))
    assert read_json(tmp_path / "x.json") == {"é": 1}


@pytest.mark.parametrize(("content", "message"), [
    (b"one\ntwo\r\na caf\xe9 opens\n", r"line 3: byte 6 \(0xe9\) is not UTF-8 text$"),
    (b"one\rcut off \xe9\xa2", r"line 2: byte 9 \(0xe9\) is not UTF-8 text$"),
    (b"\xef\xbb\xbfa\xff", r"line 1: byte 5 \(0xff\) is not UTF-8 text$"),
    ("a man\nb".encode("utf-16-le"), r"line 1: byte 2 \(0x00\) is not UTF-8 text; UTF-16 needs a byte-order mark"),
    (b"\xff\xfea\0\x00\xd8", "not valid UTF-16 text"),
    (b"\xff\xfe\0\0a", "not valid UTF-32 text"),
], ids=["Latin-1", "cut off", "behind a mark", "no mark", "broken UTF-16", "broken UTF-32"])  # fmt: skip
def test_what_is_no_text_is_named_by_line_and_byte(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x").write_bytes(content)
    for read in (read_text, read_json):
        with pytest.raises(InputError, match=f"^{tmp_path / 'x'}: {message}"):
            read(tmp_path / "x")


def test_lines_of_a_stream_are_there_as_soon_as_they_come_and_bad_ones_cost_no_others() -> None:
    reading, writing = os.pipe()
    with open(reading, "rb") as stream, open(writing, "wb", buffering=0) as source:
        lines = decoded_lines(stream)
        source.write(b"one\n")
        assert next(lines) == (1, "one", None)
        source.write(b"caf\xe9\n\ntwo")
        number, text, error = next(lines)
        assert (number, text, str(error)) == (2, "caf\ufffd", "line 2: byte 4 (0xe9) is not UTF-8 text")
        assert next(lines) == (3, "", None)
        source.close()
        assert list(lines) == [(4, "two", None)]
    assert list(decoded_lines(io.BytesIO())) == []


def test_required_files(tmp_path: Path) -> None:
    (tmp_path / "there").touch()
    require_file(tmp_path / "there")
    with pytest.raises(InputError, match="nowhere: no such file"):
        require_file(tmp_path / "nowhere")
    with pytest.raises(InputError, match="expected a file, found a folder"):
        require_file(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "endless").symlink_to("/dev/zero")
    for name in ("pipe", "endless"):  # to read one would never end
        with pytest.raises(InputError, match=f"{name}: expected a file, found a pipe, socket or device"):
            require_file(tmp_path / name)


def test_names_that_are_no_utf8_are_written_as_escapes(tmp_path: Path) -> None:
    write_text(tmp_path / "x.txt", "é caf\udce9")
    assert (tmp_path / "x.txt").read_text(encoding="utf-8") == "é caf\\udce9"


def test_digest(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


# Locks


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
        from method.runtime.files import exclusive_lock
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
    assert python(code, tmp_path / ".lock").stdout == "taken\n"


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


# Poor file systems


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
