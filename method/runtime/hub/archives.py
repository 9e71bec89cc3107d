"""Extraction of files by name from untrusted zip and tar archives, which cannot choose where files are written."""

import contextlib
import functools
import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from method.runtime.disk import format_bytes
from method.runtime.errors import InputError
from method.runtime.hub.fetch import check_space, make_folder, partial_file
from method.runtime.hub.paths import is_safe

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")

# RuntimeError: an encrypted member, or a compression that this Python lacks.
_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, RuntimeError)


@dataclass(frozen=True)
class Member:
    """An entry of an archive: its path, unpacked size in bytes, and whether it is a regular file."""

    path: str
    size: int
    regular: bool
    open: Callable[[], IO[bytes] | None]


def unpack(archive: Path, wanted: Mapping[str, Path]) -> Iterator[tuple[str, bool]]:
    """Extract files from an archive in one pass, each to a temporary file that is renamed.

    Args:
        archive: a zip or tar file.
        wanted: file name without folders -> path to write.

    Yields:
        path in the archive of each file, once it is extracted (True) or skipped (False).

    Raises:
        InputError: the archive is corrupt or has unsafe paths, a wanted name is a link or a duplicate, or there is not
            enough disk space. Files extracted before are kept.
    """
    found: dict[str, str] = {}
    members = _zip_members if archive.name.endswith(".zip") else _tar_members
    try:
        with contextlib.closing(members(archive)) as entries:
            for member in entries:
                name = PurePosixPath(member.path).name
                if not is_safe(member.path):
                    raise InputError(f"{archive}: unsafe path, it leaves its folder: {member.path!r}")
                if name in found:
                    raise InputError(f"{archive}: two files named {name}: {found[name]} and {member.path}")
                if name in wanted:
                    found[name] = member.path
                    _write(member, wanted[name], archive)
                yield member.path, name in wanted
    except _DAMAGED as error:
        raise InputError(f"{archive}: cannot be unpacked ({error}); delete it and run again") from error


def _write(member: Member, destination: Path, archive: Path) -> None:
    if not member.regular:
        raise InputError(f"{archive}: {member.path} is a link or a device, expected a file")
    make_folder(destination.parent)
    check_space({destination: member.size})
    print(f"{destination}: {format_bytes(member.size)}", flush=True)
    content = member.open()
    with partial_file(destination, f"{archive.name}/{member.path}") as stream, contextlib.ExitStack() as stack:
        stream.seek(stream.truncate(0))
        if content is not None:
            shutil.copyfileobj(stack.enter_context(content), stream, 1 << 20)
        if stream.tell() != member.size:
            raise InputError(f"{archive}: {member.path} has {stream.tell()} bytes, expected {member.size}")


def _zip_members(archive: Path) -> Generator[Member, None, None]:
    with zipfile.ZipFile(archive) as file:
        for entry in file.infolist():
            path = entry.filename.replace("\\", "/")  # as some Windows programs write them
            kind = stat.S_IFMT(entry.external_attr >> 16)  # 0 if not recorded
            if not path.endswith("/"):
                yield Member(path, entry.file_size, kind in (0, stat.S_IFREG), functools.partial(file.open, entry))


def _tar_members(archive: Path) -> Generator[Member, None, None]:
    with tarfile.open(archive, "r:*") as file:
        for entry in file:
            if not entry.isdir():
                yield Member(entry.name, entry.size, entry.isreg(), functools.partial(file.extractfile, entry))
