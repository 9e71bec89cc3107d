"""Caption files: one `VIDEOID#enc#K the caption` per line; the video id is everything before the first `#`."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from method.runtime.errors import InputError, summarize
from method.runtime.files import digest_of, read_text
from method.runtime.text import split_lines

_LINE = re.compile(r"([^#]+#\S*)\s+(\S.*)")


@dataclass(frozen=True)
class Caption:
    """A sentence that describes a moment of one video."""

    id: str
    video_id: str
    text: str


def captions_digest(captions: Sequence[Caption]) -> str:
    """A digest of the ids and texts of captions in their order."""
    return digest_of([(caption.id, caption.text) for caption in captions])


def normalized_text(text: str) -> str:
    """A caption without what does not change its meaning; equal texts are duplicates.

    >>> normalized_text("A  cat."), normalized_text("a cat")
    ('a cat', 'a cat')
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).strip(" .!?")


def read_captions(path: Path) -> list[Caption]:
    """Read a caption file; byte-order marks, any line ends, tabs after the id and blank lines are accepted.

    Raises:
        InputError: for a file that is missing, empty or not text, a line without id or caption, and a repeated id.
    """
    captions: dict[str, Caption] = {}
    problems = []
    for number, line in enumerate(split_lines(read_text(path)), start=1):
        line = line.strip()
        if not line:
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            problems.append(f"line {number}: expected 'VIDEOID#enc#K the caption', found {line[:60]!r}")
            continue
        caption_id, sentence = match.groups()
        if caption_id in captions:
            problems.append(f"line {number}: caption id {caption_id!r} occurs a second time")
            continue
        captions[caption_id] = Caption(caption_id, caption_id.split("#", 1)[0], sentence)
    if problems:
        raise InputError(f"{path}: {summarize(problems)}")
    if not captions:
        raise InputError(f"{path}: no captions, expected one 'VIDEOID#enc#K the caption' a line")
    return list(captions.values())


def group_by_video(captions: Sequence[Caption]) -> dict[str, list[Caption]]:
    """Captions of each video; videos in the order of their first captions."""
    videos: dict[str, list[Caption]] = {}
    for caption in captions:
        videos.setdefault(caption.video_id, []).append(caption)
    return videos
