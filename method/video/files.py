"""What is known of video files without opening them, so without the package av, which is optional."""

from __future__ import annotations

import importlib.util

from method.runtime.errors import InputError

# By suffix in lower case, in order of browser support.
MIME_TYPES = {
    ".mp4": "video/mp4",
    ".m4v": "video/mp4",
    ".webm": "video/webm",
    ".ogv": "video/ogg",
    ".mov": "video/quicktime",
    ".mkv": "video/x-matroska",
    ".avi": "video/x-msvideo",
    ".gif": "image/gif",
}
SUFFIXES = tuple(MIME_TYPES)
_PACKAGES = {"av": "av", "PIL": "pillow"}  # of requirements-video.txt


def can_open_videos() -> bool:
    """Whether the packages that decode videos are installed."""
    return not _missing()


def require_decoder() -> None:
    """InputError that tells how to install the packages that decode videos, unless they are installed."""
    if missing := _missing():
        raise InputError(f"the package {missing[0]} is missing; run `pip install -r requirements-video.txt`")


def _missing() -> list[str]:
    return [package for module, package in _PACKAGES.items() if importlib.util.find_spec(module) is None]
