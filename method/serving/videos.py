"""The video files that are shown and cut: those in one folder and below, each named after a video id."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from method.video.files import MIME_TYPES, SUFFIXES


class VideoFolder:
    """Finds the file of a video.

    The folder is read once, and ids, which are untrusted, are looked up but never used as paths. A file matches an id
    by its name with or without extension, or by its path below the folder without extension; only the extension is
    case-insensitive. Of several matches, the least nested one is used, then the one with the best browser support,
    then the first by name.

    Args:
        path: the folder; None: finds nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._root = path.resolve() if path is not None else None
        self._files: dict[str, list[str]] = {}
        self.files = sorted(_video_files(self._root), key=_preference) if self._root is not None else []
        for file in self.files:
            for name in _names(file):
                self._files.setdefault(name, []).append(file)

    def find(self, video_id: str) -> tuple[Path, str] | None:
        """The file of a video and its type; None if there is none, or if it is a link to outside of the folder."""
        if self._root is None:
            return None
        for file in self._files.get(_normal(video_id), []):
            try:
                path = (self._root / file).resolve(strict=True)
            except (OSError, RuntimeError):  # removed, or a cycle of links
                continue
            if path.is_relative_to(self._root) and path.is_file():
                return path, MIME_TYPES[_suffix(file)]
        return None

    def describe(self, video_ids: Iterable[str]) -> tuple[int, str]:
        """How many of these videos have a file, and a line that says so."""
        ids = list(video_ids)
        found = sum(self.find(video_id) is not None for video_id in ids)
        line = f"{found} of {len(ids)} videos have a file in {self.path}"
        if ids and not found:
            there = f"files such as {self.files[0]!r}" if self.files else f"no {', '.join(SUFFIXES)} file"
            line += f": it has {there}, expected names such as {ids[0] + SUFFIXES[0]!r}"
        return found, line


def _video_files(root: Path) -> Iterator[str]:
    """Paths of the video files below a folder, relative to it; linked and hidden folders are skipped."""
    for folder, inside, files in os.walk(root):
        inside[:] = [name for name in inside if not name.startswith(".")]
        relative = Path(folder).relative_to(root)
        for name in files:
            if not name.startswith(".") and _suffix(name) in MIME_TYPES:
                yield (relative / name).as_posix()


def _preference(file: str) -> tuple[int, int, str]:
    return file.count("/"), SUFFIXES.index(_suffix(file)), file


def _names(file: str) -> set[str]:
    """The ids that a file belongs to."""
    path = PurePosixPath(_normal(file))
    return {path.stem, path.name, path.with_suffix("").as_posix()}


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _normal(name: str) -> str:
    """Unicode NFC; some file systems change the normalization of names."""
    return unicodedata.normalize("NFC", name)
