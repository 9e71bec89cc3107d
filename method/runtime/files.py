"""Files and folders that are whole or absent: written beside their place, flushed to the disk and renamed."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from method.runtime.errors import InputError
from method.runtime.file_kinds import stand_in


@contextlib.contextmanager
def atomic_writer(path: Path) -> Iterator[BinaryIO]:
    """Open a binary file that takes the place of `path` when the block ends, and leaves `path` alone if it raises."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = ""
    try:
        descriptor, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(beside, 0o666 & ~_umask())
        os.replace(beside, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(beside)
        if isinstance(error, OSError) and error.errno and str(error.filename or ".part").endswith(".part"):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    _flush(path.parent)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Give a new folder to fill, which becomes `path` when the block ends and is removed if it raises.

    InputError when `path` exists. What a killed process left of its own is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left_over in path.parent.glob(f".{path.name}.*.part"):
        shutil.rmtree(left_over, ignore_errors=True)
    beside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part"))
    try:
        yield beside
        for file in beside.iterdir():
            _flush(file)
        _flush(beside)
        os.chmod(beside, 0o777 & ~_umask())
        if path.exists():
            raise InputError(f"{path}: exists, expected a new folder")
        os.rename(beside, path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    _flush(path.parent)


def write_bytes(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill an open binary file that then replaces `path` at once."""
    with atomic_writer(path) as file:
        write(file)


def write_text(path: Path, text: str) -> None:
    """Replace `path` with UTF-8 `text` at once; bytes of a file's name that are no UTF-8 are written as escapes."""
    with atomic_writer(path) as file:
        file.write(text.encode("utf-8", "backslashreplace"))


def write_json(path: Path, value: Any) -> None:
    """Replace `path` with `value` as indented JSON at once; NaN and infinity, which JSON lacks, raise ValueError."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path, max_bytes: int = 1 << 30) -> Any:
    """Read a JSON file. InputError when it is missing, larger than `max_bytes` or not JSON."""
    require_file(path)
    size = path.stat().st_size
    if size > max_bytes:
        raise InputError(f"{path}: {size} bytes of JSON, expected at most {max_bytes}")
    try:
        return json.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({error})") from error


def require_file(path: Path) -> None:
    """InputError unless `path` is a readable file, and no pointer, web page or packed file in its place."""
    if not path.exists():
        raise InputError(f"{path}: no such file")
    if not path.is_file():
        raise InputError(f"{path}: expected a file, found a {'folder' if path.is_dir() else 'pipe, socket or device'}")
    if not os.access(path, os.R_OK):
        raise InputError(f"{path}: permission denied")
    if found := stand_in(path):
        raise InputError(f"{path}: {found}")


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return sha256_of(file)


def sha256_of(file: BinaryIO) -> str:
    """Hex digest of the rest of an open file."""
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
