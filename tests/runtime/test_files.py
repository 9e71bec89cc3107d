"""Files are whole or absent, whatever happens while they are written."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from method.runtime.errors import InputError
from method.runtime.files import atomic_writer, read_json, require_file, sha256, write_bytes, write_json, write_text
from tests.helpers.paths import REPOSITORY


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
