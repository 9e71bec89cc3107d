"""Files of a repository placed into a folder: continued where they stopped, checked, and recorded once they are whole.

A file is fetched into a hidden partial file beside its place, which outlives the process, and renamed when its content
is the announced one. A small JSON record in the folder says what has been placed; its "complete" is written last.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import logging
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from method.runtime.disk import flush_to_disk, format_bytes, free_bytes
from method.runtime.errors import InputError
from method.runtime.locks import exclusive_lock
from utils.hub.record import Record, digests

if TYPE_CHECKING:  # a wrong environment makes the import fail: programs check it before
    from utils.hub.repository import RemoteFile, Repository

log = logging.getLogger(__name__)

_MARGIN = 64 << 20  # bytes of a disk that are left free


def fetch(repository: Repository, sources: Mapping[str, RemoteFile], record: Record) -> None:
    """Place files of a repository, and nothing that is there already; says on the terminal what it fetches.

    Args:
        repository: where they come from.
        sources: name below the record's folder -> file of the repository.
        record: what the folder holds; updated after every file, not completed.

    Raises:
        InputError: a file of the user's stands in the way, there is no room, or the hub fails; what was fetched stays.
    """
    folder = record.path.parent
    record.begin(repository)
    pending = {name: file for name, file in sources.items() if not _is_placed(name, file, record)}
    total = format_bytes(sum(file.size for file in pending.values()))
    print(f"{repository.name} at {repository.commit}: {len(pending)} of {len(sources)} files to fetch, {total}")
    for name in pending:
        make_folder((folder / name).parent)
    check_room({folder / name: file.size - _fetched(folder / name, file) for name, file in pending.items()})
    for name, file in pending.items():
        print(f"{folder / name}: {format_bytes(file.size)}", flush=True)
        record.claim(name, file.path, file.etag)
        record.add(name, file.path, file.etag, _fetch_file(repository, file, folder / name))


def refuse_others(name: str, record: Record) -> None:
    """InputError when a file that was not downloaded stands where one is to be placed."""
    path = record.path.parent / name
    if name not in record.files and os.path.lexists(path):
        raise InputError(f"{path}: is not the file of {record.repository}; move it away to fetch that one")


def check_room(needed: Mapping[Path, int]) -> None:
    """InputError when the disks cannot take so many bytes for these files and keep a margin."""
    folders = {os.stat(path.parent).st_dev: path.parent for path in needed}
    for device, folder in folders.items():
        wanted = sum(size for path, size in needed.items() if os.stat(path.parent).st_dev == device)
        free = free_bytes(folder)
        if wanted and wanted + _MARGIN > free:
            found = f"{format_bytes(wanted)} to write, {format_bytes(free)} free"
            raise InputError(f"{folder}: no room on the disk, {found}, {format_bytes(_MARGIN)} of it stay free")


@contextlib.contextmanager
def partial_file(destination: Path, key: str) -> Iterator[BinaryIO]:
    """Open the partial file of `destination` at its end, for this process alone; it is renamed when the block ends.

    If the block raises, it stays for the next run. `key` keeps partial files of different contents apart.
    """
    path = _partial_path(destination, key)
    busy = f"{destination}: another process is fetching it; wait for it and run again"
    try:
        with exclusive_lock(path, busy, wait=False), path.open("ab") as stream:
            yield stream
            stream.flush()
            flush_to_disk(stream.fileno())
            os.replace(path, destination)
    except OSError as error:
        if error.errno is None:
            raise
        raise InputError(f"{destination}: {os.strerror(error.errno)}; what was fetched so far is kept") from error
    for stale in destination.parent.glob(f".{glob.escape(destination.name)}.{'[0-9a-f]' * 12}.incomplete"):
        stale.unlink()


def make_folder(folder: Path) -> None:
    """Make a folder and those above it. InputError when that is not possible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: this folder cannot be made ({os.strerror(error.errno or 0)})") from error


def is_safe(path: str) -> bool:
    """Whether a relative name stays inside the folder it is joined to."""
    return path.isprintable() and not {"", ".."} & set(path.replace("\\", "/").split("/"))


def _partial_path(destination: Path, key: str) -> Path:
    return destination.with_name(f".{destination.name}.{hashlib.sha256(key.encode()).hexdigest()[:12]}.incomplete")


def _fetched(destination: Path, file: RemoteFile) -> int:
    path = _partial_path(destination, file.etag)
    return min(path.stat().st_size, file.size) if path.exists() else 0


def _is_placed(name: str, file: RemoteFile, record: Record) -> bool:
    path = record.path.parent / name
    if record.holds(name, file.etag):
        return True
    if not os.path.lexists(path):
        return False
    if path.is_file() and path.stat().st_size == file.size:
        found = digests(path, file.etag)
        if file.etag in found.values():
            record.add(name, file.path, file.etag, found["sha256"])
            return True
    refuse_others(name, record)
    log.warning("%s: is not what %s holds, it is fetched again", path, record.repository)
    return False


def _fetch_file(repository: Repository, file: RemoteFile, destination: Path) -> str:
    """Fetch one file to its place; its SHA-256."""
    with partial_file(destination, file.etag) as stream:
        if stream.tell() > file.size:
            stream.seek(stream.truncate(0))
        repository.append_rest(file, stream)
        stream.flush()
        found = digests(Path(stream.name), file.etag)
        if _is_hash(file.etag) and file.etag not in found.values():
            stream.truncate(0)
            raise InputError(
                f"{repository.name}/{file.path}: damaged on its way, its SHA-256 is {found['sha256']}, "
                f"the hub's etag {file.etag}; run again"
            )
    return found["sha256"]


def _is_hash(etag: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", etag) is not None
