"""Frames of video files by time, decoded once in a thread ahead of the consumer."""

from __future__ import annotations

from pathlib import Path

from method.runtime.errors import InputError

SUFFIXES = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".gif")


class VideoError(InputError):
    """A video that cannot be read or encoded. `reason` is one line without the path, which the caller knows."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def find_videos(folder: Path) -> dict[str, Path]:
    """Videos below a folder, id -> path, sorted by id; the id is the POSIX path below the folder without the suffix.

    InputError if the folder does not exist or two files have the same id.
    """
    raise NotImplementedError
