"""The record of what was downloaded into a folder from a repository of the Hugging Face Hub, a JSON file in it."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from method.runtime.errors import InputError
from method.runtime.files import read_json, write_json

if TYPE_CHECKING:  # as in method/runtime/hub/fetch.py
    from method.runtime.hub.repository import Repository

log = logging.getLogger(__name__)

RECORD_NAME = ".download.json"


@dataclass(frozen=True)
class DownloadedFile:
    """A downloaded file: its path in the repository, etag, size in bytes, modification time and SHA-256."""

    source: str
    etag: str
    size: int
    mtime_ns: int
    sha256: str


@dataclass
class Record:
    """The downloaded files of a folder by relative name, stored in the JSON file `path`."""

    path: Path
    repository: str = ""
    revision: str = ""
    commit: str = ""
    complete: bool = False
    files: dict[str, DownloadedFile] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Record:
        """Read a record; a missing or corrupt one is empty."""
        if not path.exists():
            return cls(path)
        try:
            kept = read_json(path, max_bytes=1 << 20)
            files = {name: DownloadedFile(**entry) for name, entry in kept.pop("files").items()}
            return cls(path, files=files, **kept)
        except (InputError, TypeError, KeyError, AttributeError) as error:
            log.warning("%s: not a download record, files are checked again (%s)", path, error)
            return cls(path)

    def begin(self, repository: Repository) -> None:
        """Start a download from a repository. InputError if the folder holds files of another one."""
        downloaded = any((self.path.parent / name).exists() for name in self.files)
        if downloaded and self.repository != repository.name:
            raise InputError(
                f"{self.path.parent}: holds files of {self.repository}, not of {repository.name}; "
                "choose another folder or move it away"
            )
        self.repository, self.revision, self.commit = repository.name, repository.revision, repository.commit
        self.complete = False

    def holds(self, name: str, etag: str | None = None) -> bool:
        """Whether a file exists unchanged, with this etag if given; hashed only if its modification time differs."""
        entry, path = self.files.get(name), self.path.parent / name
        if entry is None or etag not in (None, entry.etag) or not path.is_file() or path.stat().st_size != entry.size:
            return False
        return path.stat().st_mtime_ns == entry.mtime_ns or digests(path)["sha256"] == entry.sha256

    def is_complete(self, repository: str, revision: str) -> bool:
        """Whether all files of that revision have been downloaded and still exist."""
        same = self.repository == repository and revision in (self.revision, self.commit)
        return same and self.complete and all(self.holds(name) for name in self.files)

    def claim(self, name: str, source: str, etag: str) -> None:
        """Record, before it is written, that a file is a download and may be overwritten."""
        self.files[name] = DownloadedFile(source, etag, size=-1, mtime_ns=0, sha256="")
        self._write()

    def add(self, name: str, source: str, etag: str, sha256: str) -> None:
        """Record a downloaded file."""
        found = (self.path.parent / name).stat()
        self.files[name] = DownloadedFile(source, etag, found.st_size, found.st_mtime_ns, sha256)
        self._write()

    def finish(self, names: Collection[str]) -> None:
        """Mark the download as complete with these files; others are dropped from the record."""
        self.files = {name: self.files[name] for name in sorted(names)}
        self.complete = True
        self._write()

    def _write(self) -> None:
        kept = asdict(self)
        del kept["path"]
        write_json(self.path, kept)


def digests(path: Path, etag: str = "") -> dict[str, str]:
    """SHA-256 of a file and, for an etag of that length, its SHA-1 and its git blob hash, which mirrors may use."""
    hashes = {"sha256": hashlib.sha256()}
    if len(etag) == 40:
        hashes["sha1"] = hashlib.sha1(usedforsecurity=False)
        hashes["git"] = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            for digest in hashes.values():
                digest.update(block)
    return {name: digest.hexdigest() for name, digest in hashes.items()}
