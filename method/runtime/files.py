"""Files and folders: written whole or not at all, locked, moved, described, hashed. Only the standard library is used.

Some file systems (Lustre, NFS, FUSE, overlays) lack locks, permissions or renaming of folders. What the content of a
file does not depend on may fail there without harm.
"""

import codecs
import contextlib
import errno
import fcntl
import hashlib
import itertools
import json
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from method.runtime.errors import InputError
from method.runtime.file_kinds import stand_in

log = logging.getLogger(__name__)

# A disk that is full or broken, which no caller may pass over.
_LOSES_CONTENT = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG, errno.ESTALE}
_CANNOT_RENAME_FOLDERS = {errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM}
_SECONDS_BETWEEN_ATTEMPTS = 0.2
# Text with one of these is decoded, since Windows writes it; UTF-32 first, its mark begins as that of UTF-16 does.
_WIDE_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_LINE_END = re.compile(r"\r\n|\n|\r")


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
            flush_to_disk(file.fileno())
        with tolerated():
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
        with tolerated():
            os.chmod(beside, 0o777 & ~_umask())
        if path.exists():
            raise InputError(f"{path}: exists, expected a new folder")
        move(beside, path)
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
    """Read a text file of a user's. InputError when it is missing or not text, see `decode_text`."""
    require_file(path)
    try:
        return decode_text(path.read_bytes())
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def split_lines(text: str) -> list[str]:
    """The lines of a text, whose ends may be those of any operating system."""
    return _LINE_END.split(text)


def decode_text(content: bytes, first_line: int = 1) -> str:
    """Decode what a user wrote: UTF-8, or UTF-16 or UTF-32 with a byte-order mark, which is dropped.

    InputError naming line, byte within the line (both from 1) and value for what is not UTF-8 or a NUL character,
    which is what UTF-16 without its mark looks like.

    Args:
        content: the bytes of a file or of a line.
        first_line: number of its first line.
    """
    wide = next((name for mark, name in _WIDE_MARKS.items() if content.startswith(mark)), None)
    try:
        text = content.decode(wide or "utf-8")
    except UnicodeDecodeError as error:
        if wide:
            raise InputError(f"not valid {wide} text ({error.reason})") from None
        raise _not_text(content, error.start, first_line) from None
    if not wide and (nul := content.find(0)) >= 0:
        raise _not_text(content, nul, first_line)
    return text.removeprefix("\ufeff")


def _not_text(content: bytes, place: int, first_line: int) -> InputError:
    *lines_before, line = split_lines(content[:place].decode("latin-1"))
    hint = "; UTF-16 needs a byte-order mark" if content[place] == 0 else ""
    return InputError(
        f"line {first_line + len(lines_before)}: byte {len(line) + 1} (0x{content[place]:02x}) is not UTF-8 text{hint}"
    )


def decoded_lines(stream: BinaryIO) -> Iterator[tuple[int, str, InputError | None]]:
    """The lines of a stream with their numbers from 1, each as soon as it arrives.

    A line that is not text comes with the error that says so, and with replacement characters.
    """
    first = stream.readline()
    lines: Iterator[bytes] = itertools.chain([first], stream)
    if first.startswith(tuple(_WIDE_MARKS)):  # its line ends are not single bytes
        lines = iter([decode_text(first + stream.read()).encode()])
    for number, line in enumerate((part for read in lines for part in read.splitlines()), start=1):
        try:
            yield number, decode_text(line, number), None
        except InputError as error:
            yield number, line.decode("utf-8", "replace"), error


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


def digest_of(value: object) -> str:
    """Hex SHA-256 of a value that JSON can hold; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def in_bytes(size: float) -> str:
    """A number of bytes as people read it.

    >>> in_bytes(4.93e9), in_bytes(250e3), in_bytes(12), in_bytes(float("inf"))
    ('4.9 GB', '0.2 MB', '12 bytes', 'an unknown amount')
    """
    if size == float("inf"):
        return "an unknown amount"
    if size >= 1e8:
        return f"{size / 1e9:.1f} GB"
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size:.0f} bytes"


def free_bytes(folder: Path) -> float:
    """Bytes that are free on the disk of a folder; infinite where the file system does not say."""
    with tolerated():
        usage = shutil.disk_usage(folder)
        if usage.total or usage.free:
            return usage.free
    return float("inf")


@contextlib.contextmanager
def tolerated() -> Iterator[None]:
    """Pass over what a file system refuses to do. A disk that is full or fails is an OSError as ever."""
    try:
        yield
    except OSError as error:
        if error.errno in _LOSES_CONTENT:
            raise


def flush_to_disk(descriptor: int) -> None:
    """Wait until what was written to an open file is on the disk, where the file system can tell."""
    with tolerated():
        os.fsync(descriptor)


def move(source: Path, target: Path) -> None:
    """Rename a file or folder to a name that is free; a folder that cannot be renamed is copied and removed."""
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno not in _CANNOT_RENAME_FOLDERS or not source.is_dir():
            raise
        try:
            for path in [source, *sorted(source.rglob("*"))]:
                place = target / path.relative_to(source)
                if path.is_dir():
                    place.mkdir()
                else:
                    shutil.copyfile(path, place)
        except BaseException:
            shutil.rmtree(target, ignore_errors=True)
            raise
        shutil.rmtree(source, ignore_errors=True)


@contextlib.contextmanager
def exclusive_lock(
    path: Path, busy: str, *, wait: bool = True, poll: Callable[[], object] = lambda: None
) -> Iterator[None]:
    """Be the only process that holds the lock `path`; the system releases it when the process ends, however it ends.

    Where the file system has no locks, a warning says so once and the block runs without one.

    Args:
        path: the file to lock, created if it does not exist.
        busy: what to say while another process holds the lock.
        wait: whether to log `busy` once and wait for that process; otherwise `busy` is raised as InputError.
        poll: called between attempts; it may raise to give up.
    """
    waited = False
    while (descriptor := _try_lock(path)) is None:
        if not wait:
            raise InputError(busy)
        if not waited:
            log.info("%s", busy)
        waited = True
        poll()
        time.sleep(_SECONDS_BETWEEN_ATTEMPTS)
    _locks.add(descriptor)
    try:
        yield
    finally:
        if descriptor in _locks:  # in a forked process it is closed already, and its number may be another file's
            _locks.remove(descriptor)
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)


def _try_lock(path: Path) -> int | None:
    """The descriptor of the locked file, None when another process holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError as error:
        device = os.fstat(descriptor).st_dev
        if device not in _devices_without_locks:
            log.warning(
                "%s: this file system has no file locks (%s); let no two programs write there at once",
                path.parent,
                error.strerror,
            )
        _devices_without_locks.add(device)
        return descriptor
    with contextlib.suppress(FileNotFoundError):
        # Between opening and locking, the process that held the lock may have moved the file to its place.
        if os.path.samestat(os.fstat(descriptor), os.stat(path)):
            return descriptor
    os.close(descriptor)
    return None


_locks: set[int] = set()
_devices_without_locks: set[int] = set()


def _release_in_child() -> None:
    for descriptor in _locks:
        os.close(descriptor)
    _locks.clear()


# A data worker would keep the lock of a main process that was killed until it has ended itself.
os.register_at_fork(after_in_child=_release_in_child)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _flush(path: Path) -> None:
    with tolerated():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
