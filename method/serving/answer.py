"""What a search returns: the videos that were found and what is known of them."""

from __future__ import annotations

from dataclasses import dataclass

from method.data.captions import Caption
from method.evaluation.moments import Moment
from method.serving.like import Like


@dataclass(frozen=True)
class Hit:
    """A video that was found.

    scores: of each branch, and 'fused', by which videos are ranked.
    best_frames: branch -> centre of its best frame, as a fraction 0 to 1 of the video.
    timeline: fused scores of T equal frames of the video.
    duration: in seconds, where known.
    further: more moments of the video, best first.
    """

    rank: int
    video_id: str
    scores: dict[str, float]
    best_frames: dict[str, float]
    timeline: tuple[float, ...]
    moment: Moment
    duration: float | None
    further: tuple[Moment, ...] = ()


@dataclass(frozen=True)
class Answer:
    """The best videos for a query.

    caption: the query; a sentence of the user has no id and no video.
    right_rank: rank of the caption's own video as in evaluation, if it is in the corpus.
    note: a remark on the query for the user.
    seconds: from the query to the answer.
    offset: how many better videos were left out. several: whether several moments a video were requested.
    like: the moment that is the query, if one is; the text of the caption then describes it.
    confidence: how often the first result was right at such a score, 0 to 1. confident: whether that is enough.
        None: not known, or not asked.
    """

    caption: Caption
    hits: list[Hit]
    right_rank: int | None
    note: str | None
    seconds: float
    offset: int = 0
    several: bool = False
    like: Like | None = None
    confidence: float | None = None
    confident: bool | None = None


def clean(text: str) -> str:
    r"""Collapse white space to single blanks, and remove control characters and lone surrogates.

    >>> clean("  a person\n opens\x1b the\udcff fridge ")
    'a person opens the fridge'
    """
    printable = "".join(letter if letter.isprintable() else " " for letter in text)
    return " ".join(printable.split())
