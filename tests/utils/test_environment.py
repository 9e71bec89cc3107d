"""Choosing and making the Python that the launchers run, with real virtual environments and a local package."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.paths import REPOSITORY
from utils.environment import missing_packages


def write_wheel(folder: Path, version: str) -> None:
    """A package that pip can install without a network."""
    info = f"tinypkg-{version}.dist-info"
    with zipfile.ZipFile(folder / f"tinypkg-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tinypkg.py", f"version = {version!r}\n")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: tinypkg\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


class Clone:
    """A repository of its own that needs nothing but `tinypkg`, and the environment variables that keep pip local."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "clone"
        used = ("disk", "errors", "file_kinds", "files", "locks", "text")
        for name in ("utils/environment.py", "utils/environment.sh", *(f"method/runtime/{part}.py" for part in used)):
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, self.folder / name)
        (self.folder / "requirements.txt").write_text("# needed\ntinypkg>=1.0  # for the test\n")
        (self.folder / "requirements-dev.txt").write_text("-r requirements.txt\n")
        (self.folder / "requirements-video.txt").write_text("-r requirements.txt\ntinypkg>=2.0\n")
        self.lock("1.0")
        self.wheels = folder / "wheels"
        self.wheels.mkdir()
        for version in ("1.0", "2.0"):
            write_wheel(self.wheels, version)
        self.venv = self.folder / ".venv"
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "PYTHON"))}
        self.environment |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.wheels), "PIP_CONFIG_FILE": os.devnull}
        # A Python without any package: that of an empty environment.
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "empty"], check=True)
        self.python = folder / "empty" / "bin" / "python"
        self.environment["PATH"] = f"{self.python.parent}:{os.environ['PATH']}"

    def lock(self, version: str) -> None:
        (self.folder / "requirements-lock.txt").write_text(f"tinypkg=={version}\n")
        (self.folder / "requirements-dev-lock.txt").write_text("-r requirements-lock.txt\n")

    def start(self, *flags: str, **environment: str) -> "subprocess.Popen[str]":
        source = f'set -euo pipefail; source "{self.folder}/utils/environment.sh"'
        script = f'{source}; python="$(find_python "$@")"; echo "$python"'
        return subprocess.Popen(
            ["bash", "-c", script, "launcher", *flags],
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def find(self, *flags: str, **environment: str) -> tuple[int, str, str]:
        process = self.start(*flags, **environment)
        out, error = process.communicate(timeout=120)
        return process.returncode, out.strip(), error

    def installed(self) -> str:
        done = subprocess.run(
            [self.venv / "bin/python", "-c", "import tinypkg; print(tinypkg.version)"], capture_output=True, text=True
        )
        return done.stdout.strip()


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return Clone(tmp_path)


@pytest.fixture(scope="module")
def after_a_kill(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a .venv that a launcher made after an earlier one was killed while pip ran, and what it printed."""
    clone = Clone(tmp_path_factory.mktemp("made"))
    with silent_server() as url:
        process = clone.start(PIP_NO_INDEX="", PIP_INDEX_URL=url, PIP_FIND_LINKS="", PIP_TIMEOUT="60")
        wait_for(clone.venv / "bin" / "pip")
        time.sleep(0.3)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert clone.venv.joinpath(".incomplete").exists()
    half = next(clone.venv.glob("lib/python3*/site-packages")) / "half_done"  # as pip may have left it
    half.mkdir()
    status, python, printed = clone.find()
    assert (status, python) == (0, str(clone.venv / "bin/python"))
    assert not half.exists()
    return clone.venv, printed


@pytest.fixture
def made(clone: Clone, after_a_kill: tuple[Path, str]) -> Clone:
    """A repository with an environment."""
    shutil.copytree(after_a_kill[0], clone.venv, symlinks=True)
    return clone


@contextlib.contextmanager
def silent_server() -> Iterator[str]:
    """A package index that takes a connection and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"


def wait_for(condition: Path, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition.exists():
        assert time.monotonic() < end, f"{condition} did not come"
        time.sleep(0.02)


def test_an_environment_is_made_again_after_a_kill_and_then_used(made: Clone, after_a_kill: tuple[Path, str]) -> None:
    assert "creating" in after_a_kill[1]
    assert made.installed() == "1.0"
    written = made.venv.joinpath(".installed").stat().st_mtime_ns
    assert made.find() == (0, str(made.venv / "bin/python"), "")
    assert made.venv.joinpath(".installed").stat().st_mtime_ns == written


def test_test_tools_are_installed_on_top(made: Clone) -> None:
    status, python, printed = made.find("--dev")
    assert (status, python) == (0, str(made.venv / "bin/python"))
    assert "updating" in printed
    assert made.find("--dev")[2] == ""
    assert made.find()[2] == ""


def test_the_video_flag_asks_for_its_packages(clone: Clone) -> None:
    site = next(clone.python.parents[1].glob("lib/python3*/site-packages"))
    with zipfile.ZipFile(clone.wheels / "tinypkg-1.0-py3-none-any.whl") as wheel:
        wheel.extractall(site)
    clone.lock("2.0")
    assert clone.find() == (0, str(clone.python), "")
    assert clone.find("--video")[:2] == (0, str(clone.venv / "bin/python"))
    assert clone.installed() == "2.0"
    assert clone.find("--video")[2] == ""


def test_a_changed_lock_file_updates_the_environment(made: Clone) -> None:
    made.lock("2.0")
    status, _, printed = made.find()
    assert status == 0
    assert "updating" in printed
    assert made.installed() == "2.0"


def test_a_lost_package_is_installed_again(made: Clone) -> None:
    shutil.rmtree(next(made.venv.glob("lib/python3*/site-packages/tinypkg-*")))
    assert made.find()[0] == 0
    assert made.find()[2] == ""


def test_an_active_python_with_the_packages_is_used(clone: Clone) -> None:
    site = next(clone.python.parents[1].glob("lib/python3*/site-packages"))
    with zipfile.ZipFile(clone.wheels / "tinypkg-1.0-py3-none-any.whl") as wheel:
        wheel.extractall(site)
    assert clone.find() == (0, str(clone.python), "")
    assert clone.find(PYTHON=str(clone.python)) == (0, str(clone.python), "")
    assert not clone.venv.exists()


def test_two_at_once(clone: Clone) -> None:
    clone.venv.joinpath("lib").mkdir(parents=True)  # left by a process that was killed before there was a Python
    processes = [clone.start(), clone.start()]
    results = [(process.communicate(timeout=120), process.returncode) for process in processes]
    assert [status for _, status in results] == [0, 0]
    assert {out.strip() for (out, _), _ in results} == {str(clone.venv / "bin/python")}
    assert sorted("creating" in printed for (_, printed), _ in results) == [False, True]
    assert clone.installed() == "1.0"


def test_an_environment_of_the_user_gets_what_it_lacks_and_keeps_the_rest(made: Clone) -> None:
    site = next(made.venv.glob("lib/python3*/site-packages"))
    for path in (made.venv / ".installed", made.venv / ".lock", site / "tinypkg.py"):
        path.unlink()
    shutil.rmtree(next(site.glob("tinypkg-*")))
    kept = site / "precious"
    kept.write_text("data")
    assert made.find()[0] == 0
    assert made.installed() == "1.0"
    assert kept.read_text() == "data"


def test_packages_that_pip_cannot_get(made: Clone) -> None:
    made.lock("9.9")
    status, out, printed = made.find()
    assert (status, out) == (2, "")
    last = printed.splitlines()[-1]
    assert last.startswith(f"error: {made.folder}/requirements-lock.txt: pip could not install it")
    assert "Traceback" not in printed
    assert made.venv.joinpath(".incomplete").exists()


def test_a_missing_python(clone: Clone) -> None:
    status, _, printed = clone.find(PYTHON="/no/such/python")
    assert status == 2
    assert re.fullmatch(r"error: expected Python 3.10 or newer, found /no/such/python: .*No such file.*\n", printed)


def test_an_old_python(clone: Clone, tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.write_text('#!/bin/sh\nif [ "$1" = --version ]; then echo Python 3.9.2; else exit 1; fi\n')
    old.chmod(0o755)
    assert clone.find(PYTHON=str(old)) == (2, "", f"error: expected Python 3.10 or newer, found {old}: Python 3.9.2\n")
    assert not clone.venv.exists()


def test_a_python_of_another_version_than_the_environment(made: Clone) -> None:
    config = made.venv / "pyvenv.cfg"
    config.write_text(re.sub(r"version = \d+\.\d+", "version = 3.9", config.read_text()))
    status, _, printed = made.find(PYTHON=str(made.python))
    assert status == 2
    assert f"{made.venv} holds Python 3.9: remove that folder or unset PYTHON" in printed
    assert made.find()[0] == 0


def test_a_python_without_ensurepip(clone: Clone) -> None:
    hook = next(clone.python.parents[1].glob("lib/python3*/site-packages")) / "hide.pth"
    hook.write_text("import sys; sys.modules['ensurepip'] = None\n")
    status, _, printed = clone.find()
    assert status == 2
    assert re.fullmatch(r"error: .*no module ensurepip, .*apt install python3-venv.*\n", printed)


def test_missing_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, version in (("one", "1.10.2"), ("two-and.a_half", "2.5+cu128"), ("three", "3.0rc1")):
        info = tmp_path / f"{re.sub('[-_.]+', '_', name)}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("one>=1.9  # newer than 1.9\ntwo_and_a_half>=2.5\n\nthree\n")
    assert missing_packages(requirements) == []
    (tmp_path / "more.txt").write_text("-r requirements.txt\none>=1.11\nthree>=4\nfour\n")
    expected = ["one>=1.11 (found 1.10.2)", "three>=4 (found 3.0rc1)", "four (found none)"]
    assert missing_packages(tmp_path / "more.txt") == expected
    requirements.write_text("one<2\n")
    with pytest.raises(ValueError, match="'one<2'"):
        missing_packages(requirements)


@pytest.mark.parametrize("kind", ["", "-cpu", "-video", "-dev"])
def test_lock_files_satisfy_the_requirements(kind: str) -> None:
    """The tested set pins everything exactly, and nothing below what requirements.txt asks for."""
    pins: dict[str, set[str]] = {}
    for name in {"requirements-lock.txt", "requirements-dev-lock.txt" if kind == "-dev" else "requirements-lock.txt"}:
        for line in (REPOSITORY / name).read_text().splitlines():
            if line and not line.startswith(("#", "-r ")):
                match = re.fullmatch(r"([\w.-]+)==([\w.]+)(; python_version [<>]=? \"3\.\d+\")?", line)
                assert match, line
                pins.setdefault(re.sub(r"[-_.]+", "-", match[1].lower()), set()).add(match[2])
    for line in (REPOSITORY / f"requirements{kind}.txt").read_text().splitlines():
        if match := re.match(r"([\w.-]+)>=([\d.]+)", line):
            for version in pins[re.sub(r"[-_.]+", "-", match[1].lower())]:
                assert release(version) >= release(match[2]), line


def release(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)]
