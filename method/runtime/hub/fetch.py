"""Download of repository files into a folder: resumable, verified and recorded.

A file is downloaded to a hidden partial file next to it, which survives an interruption, and renamed once its content
is verified. A small JSON record in the folder lists the downloaded files; it is marked as complete at the end.
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
from method.runtime.hub.record import Record, digests
from method.runtime.locks import exclusive_lock

if TYPE_CHECKING:  # imported late: a wrong environment would break the import, so programs check it first
    from method.runtime.hub.repository import RemoteFile, Repository

log = logging.getLogger(__name__)

_MARGIN = 64 << 20  # bytes to leave free on a disk


def fetch(repository: Repository, sources: Mapping[str, RemoteFile], record: Record) -> None:
    """Download the missing files of a repository, and print their names and sizes.

    Args:
        repository: the source.
        sources: name below the record's folder -> file of the repository.
        record: the record of the folder; updated after every file, but not marked as complete.

    Raises:
        InputError: an unrelated file has the same name, the disk is full, or the hub fails; downloaded data is kept.
    """
    folder = record.path.parent
    record.begin(repository)
    pending = {name: file for name, file in sources.items() if not _is_downloaded(name, file, record)}
    total = format_bytes(sum(file.size for file in pending.values()))
    print(f"{repository.name} at {repository.commit}: {len(pending)} of {len(sources)} files to download, {total}")
    for name in pending:
        make_folder((folder / name).parent)
    check_space({folder / name: file.size - _fetched(folder / name, file) for name, file in pending.items()})
    for name, file in pending.items():
        print(f"{folder / name}: {format_bytes(file.size)}", flush=True)
        record.claim(name, file.path, file.etag)
        record.add(name, file.path, file.etag, _fetch_file(repository, file, folder / name))


def refuse_foreign(name: str, record: Record) -> None:
    """InputError if the file to download would overwrite one that was not downloaded."""
    path = record.path.parent / name
    if name not in record.files and os.path.lexists(path):
        raise InputError(f"{path}: is not the file of {record.repository}; move it away to download that one")


def check_space(needed: Mapping[Path, int]) -> None:
    """InputError if these files, of so many bytes each, and a margin do not fit on their disks."""
    folders = {os.stat(path.parent).st_dev: path.parent for path in needed}
    for device, folder in folders.items():
        wanted = sum(size for path, size in needed.items() if os.stat(path.parent).st_dev == device)
        free = free_bytes(folder)
        if wanted and wanted + _MARGIN > free:
            found = f"{format_bytes(wanted)} to write, {format_bytes(free)} free"
            raise InputError(f"{folder}: not enough disk space: {found}, {format_bytes(_MARGIN)} of it to be left free")


@contextlib.contextmanager
def partial_file(destination: Path, key: str) -> Iterator[BinaryIO]:
    """Open and lock the partial file of `destination` for appending; it is renamed when the block ends.

    If the block raises, it is kept for the next run. `key` distinguishes partial files of different contents.
    """
    path = _partial_path(destination, key)
    busy = f"{destination}: another process is downloading it; wait for it and run again"
    try:
        with exclusive_lock(path, busy, wait=False), path.open("ab") as stream:
            yield stream
            stream.flush()
            flush_to_disk(stream.fileno())
            os.replace(path, destination)
    except OSError as error:
        if error.errno is None:
            raise
        raise InputError(f"{destination}: {os.strerror(error.errno)}; the partial download is kept") from error
    for stale in destination.parent.glob(f".{glob.escape(destination.name)}.{'[0-9a-f]' * 12}.incomplete"):
        stale.unlink()


def make_folder(folder: Path) -> None:
    """Create a folder and its parents. InputError if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot create this folder ({os.strerror(error.errno or 0)})") from error


def _partial_path(destination: Path, key: str) -> Path:
    return destination.with_name(f".{destination.name}.{hashlib.sha256(key.encode()).hexdigest()[:12]}.incomplete")


def _fetched(destination: Path, file: RemoteFile) -> int:
    path = _partial_path(destination, file.etag)
    return min(path.stat().st_size, file.size) if path.exists() else 0


def _is_downloaded(name: str, file: RemoteFile, record: Record) -> bool:
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
    refuse_foreign(name, record)
    log.warning("%s: differs from the file of %s, downloading it again", path, record.repository)
    return False


def _fetch_file(repository: Repository, file: RemoteFile, destination: Path) -> str:
    """Download and verify a file; returns its SHA-256."""
    with partial_file(destination, file.etag) as stream:
        if stream.tell() > file.size:
            stream.seek(stream.truncate(0))
        repository.download_rest(file, stream)
        stream.flush()
        found = digests(Path(stream.name), file.etag)
        if _is_hash(file.etag) and file.etag not in found.values():
            stream.truncate(0)
            raise InputError(
                f"{repository.name}/{file.path}: corrupt download, its SHA-256 is {found['sha256']}, "
                f"the hub's etag {file.etag}; run again"
            )
    return found["sha256"]


def _is_hash(etag: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", etag) is not None
