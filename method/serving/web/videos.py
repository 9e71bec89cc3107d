"""The video files that the web page may show: those of one folder, each named after a video id."""

from __future__ import annotations

from pathlib import Path

# In the order in which browsers like them best.
_TYPES = {
    ".mp4": "video/mp4",
    ".m4v": "video/mp4",
    ".webm": "video/webm",
    ".ogv": "video/ogg",
    ".mov": "video/quicktime",
    ".mkv": "video/x-matroska",
}


class VideoFolder:
    """Finds the file of a video.

    Args:
        path: the folder; None when there is none, and then nothing is found.
    """

    def __init__(self, path: Path | None) -> None:
        self._root = path.resolve() if path is not None else None

    def find(self, video_id: str) -> tuple[Path, str] | None:
        """The file of a video and its type; None when there is none, or when it lies outside the folder.

        An id is data and may hold anything, `../` as well, and a file may be a link to anywhere.
        """
        if self._root is None:
            return None
        for suffix, kind in _TYPES.items():
            try:
                path = (self._root / f"{video_id}{suffix}").resolve(strict=True)
            except (OSError, RuntimeError, ValueError):  # missing, links in a circle, no name of a file
                continue
            if path.is_relative_to(self._root) and path.is_file():
                return path, kind
        return None
