"""Labels with several right videos for a caption.

The captions of the benchmarks also describe videos other than their own. The labels are JSON lines of `{"query_id",
"caption", "gt_video_ids": [...]}`, the form in which https://github.com/CELL-POSTECH/prvr-ea released them.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from method.data.captions import Caption
from method.runtime.errors import InputError, shown, summarize
from method.runtime.files import read_text
from method.runtime.text import split_lines

log = logging.getLogger(__name__)

_EXPECTED = '{"query_id": text, "caption": text, "gt_video_ids": [texts]}'


@dataclass(frozen=True)
class RightVideos:
    """The right videos of the evaluated captions.

    videos: caption id -> ids of its right videos, at least one, each once, in the order of the captions.
    left_out: number of evaluated captions without labels.
    """

    videos: Mapping[str, tuple[str, ...]]
    left_out: int

    def describe(self) -> str:
        """One line on the labels."""
        counts = [len(own) for own in self.videos.values()]
        several = sum(count > 1 for count in counts)
        line = (
            f"several right videos: {len(counts)} captions have labels, {several} of them "
            f"({100 * several / len(counts):.0f}%) more than one video, {sum(counts) / len(counts):.2f} on average"
        )
        return f"{line}; {self.left_out} captions have no labels and are left out" if self.left_out else line


def read_right_videos(path: Path | None, captions: Sequence[Caption], subset: bool) -> RightVideos | None:
    """Read the right videos of all evaluated captions; None without a path, or, with a line in the log, a file.

    Lines of other captions are ignored with a warning. So is a caption whose text differs from the label's, which
    suggests labels of another version of the captions.

    Args:
        path: JSON lines, see above.
        captions: the evaluated ones; their videos are the candidates.
        subset: whether captions may lack a line; they are left out.

    Raises:
        InputError: naming file and line, for one that is not such an object, a caption that occurs twice, and a right
            video that is listed twice; counting and naming the first of evaluated captions without a line, and of right
            videos that are not among the candidates.
    """
    if path is None:
        return None
    if not path.exists():
        log.info("no labels with several right videos (%s not found); their metrics are skipped", path)
        return None
    lines = _read_lines(path)
    texts = {caption.id: caption.text for caption in captions}
    _check_captions(path, lines, texts, subset)
    _check_videos(path, {name: lines[name] for name in texts if name in lines}, {own.video_id for own in captions})
    found = {caption.id: tuple(lines[caption.id].videos) for caption in captions if caption.id in lines}
    return RightVideos(found, len(captions) - len(found))


@dataclass(frozen=True)
class _Line:
    number: int
    caption: str | None
    videos: list[str]


def _read_lines(path: Path) -> dict[str, _Line]:
    """The lines by caption id."""
    lines: dict[str, _Line] = {}
    problems = []
    for number, text in enumerate(split_lines(read_text(path)), start=1):
        if not text.strip():
            continue
        try:
            name, line = _parse(text, number)
        except ValueError as error:
            problems.append(f"line {number}: {error}")
            continue
        if name in lines:
            before = lines[name].number
            problems.append(f"line {number}: query_id {shown(name)} occurs a second time, after line {before}")
        lines.setdefault(name, line)
    if problems:
        raise InputError(f"{path}: {summarize(problems)}")
    return lines


def _parse(text: str, number: int) -> tuple[str, _Line]:
    """Caption id and content of one line. ValueError that says what is wrong."""
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"expected a JSON object, found {text[:60]!r}") from None
    if not isinstance(row, dict) or not isinstance(row.get("query_id"), str):
        raise ValueError(f"expected {_EXPECTED}, found {text[:60]!r}")
    name, caption, videos = row["query_id"], row.get("caption"), row.get("gt_video_ids")
    if not isinstance(caption, str | None):
        raise ValueError(f"caption of {shown(name)} is {shown(caption)}, expected text")
    if not isinstance(videos, list) or not videos or not all(isinstance(video, str) for video in videos):
        other = [video for video in videos if not isinstance(video, str)] if isinstance(videos, list) else []
        found = f"has {shown(other[0])}" if other else "is an empty list" if videos == [] else f"is {shown(videos)}"
        raise ValueError(f"gt_video_ids of {shown(name)} {found}, expected a list of at least one video id, as text")
    twice = [video for video, count in Counter(videos).items() if count > 1]
    if twice:
        raise ValueError(f"gt_video_ids of {shown(name)} has {shown(twice[0])} more than once")
    return name, _Line(number, caption, videos)


def _check_captions(path: Path, lines: Mapping[str, _Line], texts: Mapping[str, str], subset: bool) -> None:
    missing = [name for name in texts if name not in lines]
    if len(missing) == len(texts):
        raise InputError(f"{path}: no line for any of the {len(texts)} evaluated captions, the first is {missing[0]!r}")
    if missing and not subset:
        raise InputError(
            f"{path}: no line for {len(missing)} of the {len(texts)} evaluated captions, the first is {missing[0]!r}; "
            "--multi_gt_subset leaves them out"
        )
    unknown = [shown(name) for name in lines if name not in texts]
    if unknown:
        log.warning("%s: captions that are not evaluated (%d): %s", path, len(unknown), summarize(unknown))
    other = [
        f"{shown(name)} is {shown(texts[name])}, the label's is {shown(line.caption)}"
        for name, line in lines.items()
        if name in texts and line.caption is not None and _words(line.caption) != _words(texts[name])
    ]
    if other:
        log.warning("%s: captions with another text than the label's (%d), are the labels those of other captions? %s",
            path, len(other), summarize(other, 2))  # fmt: skip


def _words(text: str) -> list[str]:
    return text.casefold().split()


def _check_videos(path: Path, lines: Mapping[str, _Line], candidates: set[str]) -> None:
    absent = [
        f"{shown(video)} of caption {shown(name)} (line {line.number})"
        for name, line in lines.items()
        for video in line.videos
        if video not in candidates
    ]
    if absent:
        raise InputError(
            f"{path}: {len(absent)} right videos are not among the {len(candidates)} evaluated videos, the first is "
            f"{absent[0]}"
        )
