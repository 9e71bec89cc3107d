"""Find or create the Python environment of the launch scripts and print the path of its interpreter.

    python utils/environment.py            # for training and evaluation
    python utils/environment.py --video    # also for features of videos
    python utils/environment.py --dev      # for tests/run.sh, with its tools

The running Python is used if it has the packages of requirements.txt, and of the file of each flag, for example in a
conda environment. Otherwise the running Python creates .venv in the repository from requirements-lock.txt, which has
those for videos, too. An interrupted installation is started over, one from another lock file is updated, and
concurrent calls wait for each other. Only the standard library is imported.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import importlib.util
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from method.runtime.errors import InputError, run_command, summarize
from method.runtime.files import sha256, write_text
from method.runtime.locks import exclusive_lock

log = logging.getLogger(__name__)

REPOSITORY = Path(__file__).resolve().parents[1]
# Flags, in the order of how much they ask for; each has a file of requirements.
_EXTRAS = {"video": "include what reads videos", "dev": "include the tools of tests/run.sh"}
_REQUIREMENT = re.compile(r"([\w.-]+)\s*(?:>=\s*([\d.]+))?")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the path of a Python interpreter with the packages."""
    parser = argparse.ArgumentParser(description="Find or create the Python environment of the launch scripts.")
    for extra, meaning in _EXTRAS.items():
        parser.add_argument(f"--{extra}", action="store_true", help=meaning)
    parser.add_argument(
        "--missing", action="store_true", help="only print the packages that this Python lacks, one per line"
    )
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    extras = [extra for extra in _EXTRAS if getattr(options, extra)]
    missing = [package for extra in ["", *extras] for package in missing_packages(_requirements(extra))]
    if options.missing:
        print("\n".join(missing))
        return
    environment = Environment(REPOSITORY / ".venv", extras)
    # An active .venv must match the lock file; any other environment only needs the packages.
    is_active = environment.folder.resolve() == Path(sys.prefix).resolve()
    if not is_active and not missing:
        print(sys.executable)
        return
    environment.ensure(named=bool(os.environ.get("PYTHON")))
    print(environment.python)


def _requirements(extra: str) -> Path:
    return REPOSITORY / (f"requirements-{extra}.txt" if extra else "requirements.txt")


def missing_packages(requirements: Path) -> list[str]:
    """Packages of a requirements file that this Python lacks, as `name>=oldest (found version)`; none is imported."""
    missing = []
    for line in requirements.read_text("utf-8").splitlines():
        line = line.split("#")[0].strip()
        if line.startswith("-r "):
            missing += missing_packages(requirements.parent / line[3:].strip())
        elif line:
            match = _REQUIREMENT.fullmatch(line)
            if match is None:
                raise ValueError(f"{requirements}: {line!r} is not 'name' or 'name>=version'")
            name, oldest = match.groups(default="0")
            found = _version(name)
            if found is None or _release(found) < _release(oldest):
                missing.append(f"{line} (found {found or 'none'})")
    return missing


def _version(package: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


def _release(version: str) -> tuple[int, ...]:
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


class Environment:
    """A virtual environment with the packages of a lock file.

    Its folder has three more files: `.incomplete` exists while packages are installed, `.installed` has the digests of
    the installed lock files, `.lock` admits one process at a time.
    """

    def __init__(self, folder: Path, extras: Sequence[str]) -> None:
        self.folder = folder
        self.extras = extras
        self.lock = REPOSITORY / ("requirements-dev-lock.txt" if "dev" in extras else "requirements-lock.txt")
        self.python = folder / "bin" / "python"
        self._incomplete = folder / ".incomplete"
        self._stamp = folder / ".installed"

    def ensure(self, named: bool) -> None:
        """Create or update the environment unless it is complete.

        InputError if that fails, or if the user chose a Python (`named`) and the environment has another version.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"{self.folder}: expected a folder for the Python environment, found a file")
        if named:
            self._check_version()
        if self._is_complete():
            return
        self.folder.mkdir(exist_ok=True)
        with exclusive_lock(self.folder / ".lock", f"waiting for another process that installs {self.folder}"):
            if not self._is_complete():
                self._install()

    def _is_complete(self) -> bool:
        if self._incomplete.exists() or not os.access(self.python, os.X_OK):
            return False
        # An environment without a stamp was created by hand and only needs the packages.
        if self._stamp.exists() and not set(self._digests()) <= set(self._stamp.read_text("utf-8").splitlines()):
            return False
        flags = ["--missing", *(f"--{extra}" for extra in self.extras)]
        found = subprocess.run([self.python, __file__, *flags], capture_output=True, text=True)
        return found.returncode == 0 and not found.stdout.strip()

    def _check_version(self) -> None:
        config = self.folder / "pyvenv.cfg"
        if self._incomplete.exists() or not config.exists():
            return
        found = re.search(r"^version(?:_info)?\s*=\s*(\d+\.\d+)", config.read_text("utf-8"), re.MULTILINE)
        if found is not None and found[1] != _python_version(2):
            raise InputError(
                f"PYTHON={os.environ['PYTHON']}: Python {_python_version(2)} without all of "
                f"{', '.join(_requirements(extra).name for extra in ['', *self.extras])}, "
                f"and {self.folder} holds Python {found[1]}: remove that folder or unset PYTHON"
            )

    def _install(self) -> None:
        broken = self._incomplete.exists() or not os.access(self.python, os.X_OK)
        if broken:
            _check_tools()
        self._incomplete.touch()
        if broken:
            log.info("creating %s with Python %s, which takes a few minutes", self.folder, _python_version(3))
            self._create()
        else:
            log.info("updating %s from %s", self.folder, self.lock.name)
        pip: list[str | Path] = [self.python, "-m", "pip", "--disable-pip-version-check", "install", "-r", self.lock]
        if subprocess.run(pip, stdout=sys.stderr, env={**os.environ, "PIP_USER": "0"}).returncode != 0:
            raise InputError(
                f"{self.lock}: pip could not install it for Python {_python_version(3)} (see its output above; tested "
                "with 3.10 to 3.13); without a network, set PYTHON= to a Python that has the packages"
            )
        write_text(self._stamp, "\n".join(self._digests()) + "\n")
        self._incomplete.unlink()

    def _create(self) -> None:
        for path in self.folder.glob("[!.]*"):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        # If .venv was active, its Python has just been removed.
        base = getattr(sys, "_base_executable", sys.executable)
        if subprocess.run([base, "-m", "venv", self.folder], stdout=sys.stderr).returncode != 0:
            raise InputError(f"{base}: could not create a Python environment in {self.folder} (see its output above)")

    def _digests(self) -> list[str]:
        names = [self.lock.name]
        names += re.findall(r"^-r (\S+)", self.lock.read_text("utf-8"), re.MULTILINE)
        return [f"{sha256(self.lock.parent / name)}  {name}" for name in names]


def _check_tools() -> None:
    missing = [name for name in ("venv", "ensurepip") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"{sys.executable}: no module {summarize(missing)}, expected a Python that can create virtual environments "
            "(Debian, Ubuntu: apt install python3-venv) or has the packages of requirements.txt; PYTHON= chooses it"
        )


def _python_version(parts: int) -> str:
    return ".".join(map(str, sys.version_info[:parts]))


if __name__ == "__main__":
    run_command(main)
