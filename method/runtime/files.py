"""Files and folders that are written whole or not at all, JSON, and hashes. Only the standard library is used."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from method.runtime.disk import flush_to_disk, ignore_unsupported, move
from method.runtime.errors import InputError
from method.runtime.file_kinds import stand_in
from method.runtime.text import decode_text


@contextlib.contextmanager
def atomic_writer(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary binary file that replaces `path` when the block ends; if it raises, `path` is unchanged."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = ""
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        with os.fdopen(descriptor, "w+b") as file:
            yield file
            file.flush()
            flush_to_disk(file.fileno())
        with ignore_unsupported():
            os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.errno and str(error.filename or ".part").endswith(".part"):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    _flush(path.parent)


def remove_partial_files(folder: Path, name: str = "*") -> None:
    """Remove what killed processes left of files with this name, which may be a pattern; none may be written now."""
    for partial in folder.glob(f".{name}.*.part"):
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path` when the block ends and is removed if it raises.

    InputError when `path` exists. Temporary folders of killed processes are removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in path.parent.glob(f".{path.name}.*.part"):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part"))
    try:
        yield temporary
        for file in temporary.iterdir():
            _flush(file)
        _flush(temporary)
        with ignore_unsupported():
            os.chmod(temporary, 0o777 & ~_umask())
        if path.exists():
            raise InputError(f"{path}: exists, expected a new folder")
        move(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _flush(path.parent)


def write_bytes(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Atomically replace `path` with what `write` writes to an open binary file."""
    with atomic_writer(path) as file:
        write(file)


def write_text(path: Path, text: str) -> None:
    """Atomically replace `path` with UTF-8 `text`; surrogates (file names that are not UTF-8) become escapes."""
    with atomic_writer(path) as file:
        file.write(text.encode("utf-8", "backslashreplace"))


def write_json(path: Path, value: Any) -> None:
    """Atomically replace `path` with `value` as indented JSON; ValueError for NaN and infinity, which JSON lacks."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path, max_bytes: int = 1 << 30) -> Any:
    """Read a JSON file. InputError when it is missing, larger than `max_bytes`, not text or not JSON."""
    require_file(path)
    size = path.stat().st_size
    if size > max_bytes:
        raise InputError(f"{path}: {size} bytes of JSON, expected at most {max_bytes}")
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({error})") from error


def read_text(path: Path) -> str:
    """Read a text file. InputError when it is missing or not text, see `decode_text`."""
    require_file(path)
    try:
        return decode_text(path.read_bytes())
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def require_file(path: Path) -> None:
    """InputError unless `path` is a readable file, and not an LFS pointer, a web page or a compressed file instead."""
    if not path.exists():
        raise InputError(f"{path}: no such file")
    if not path.is_file():
        raise InputError(f"{path}: expected a file, found a {'folder' if path.is_dir() else 'pipe, socket or device'}")
    if not os.access(path, os.R_OK):
        raise InputError(f"{path}: permission denied")
    if found := stand_in(path):
        raise InputError(f"{path}: {found}")


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as file:
        return sha256_of(file)


def sha256_of(file: BinaryIO) -> str:
    """Hex SHA-256 of an open file from its position on."""
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def digest_of(value: object) -> str:
    """Hex SHA-256 of a JSON-serializable value; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _flush(path: Path) -> None:
    with ignore_unsupported():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
