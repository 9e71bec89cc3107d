"""Search results as JSON for programs and as text for a terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

from method.data.captions import Caption
from method.evaluation.metrics import FUSED
from method.evaluation.moments import Moment
from method.serving.answer import Answer, Hit, clean

Clips: TypeAlias = Mapping[tuple[int, int], Path]  # rank of the video and place of its moment, both from 1 -> file

SCHEMA = "a3prvr.search/2"
BLOCKS = "▁▂▃▄▅▆▇█"
ASCII_BLOCKS = "_.:-=+*#"  # for terminals without block characters
_MAX_COLUMNS, _MIN_COLUMNS = 48, 8


def as_json(answer: Answer, split: str, videos: int, clips: Clips | None = None) -> dict[str, Any]:
    """The result of one query as JSON values.

        schema      "a3prvr.search/2"; the number changes with the fields
        query       text; caption_id, video_id and right_rank of a caption of the dataset, else null. right_rank is the
                    rank of its own video as in evaluation, null if that is not in the corpus. like: video_id, start and
                    end (fractions of the video) of the moment that is the query, else null
        corpus      split and number of videos
        offset      number of better videos that were left out
        next_offset that of the next page, null after the last video
        confidence  how often the first result (of offset 0) was right at such a score, or null
        confident   whether that is enough, null if there is no confidence or no minimum
        note        a remark on the query, or null
        seconds     from the query to the answer
        error       only if the query failed: the reason; results is empty
        results     best first: rank, video_id, score, scores (of each branch and 'fused'), duration (seconds or null),
                    best_frames: of each branch, the centre of its best frame, as a fraction of the video
                    moment: start, end and peak as fractions of the video, the timeline's score at the peak, and
                    start_seconds, end_seconds, peak_seconds, null without a duration; if clips were saved: clip,
                    the path of the file, or null
                    moments: only if several a video were requested: `moment` and the further ones, best first
                    timeline: fused scores of T equal frames of the video

    Args:
        answer: the result.
        split: name of the searched split.
        videos: number of searched videos.
        clips: those that were saved, if they were to be.
    """
    caption = answer.caption
    return {
        "schema": SCHEMA,
        "query": {
            "text": caption.text,
            "caption_id": caption.id or None,
            "video_id": caption.video_id or None,
            "right_rank": answer.right_rank,
            "like": None if answer.like is None else asdict(answer.like),
        },
        "corpus": {"split": split, "videos": videos},
        "offset": answer.offset,
        "next_offset": next_offset(answer, videos),
        "confidence": answer.confidence,
        "confident": answer.confident,
        "note": answer.note,
        "seconds": answer.seconds,
        "results": [_hit_as_json(hit, answer.several, clips) for hit in answer.hits],
    }


def next_offset(answer: Answer, videos: int) -> int | None:
    """The offset of the page after an answer; None if that has no videos."""
    end = answer.offset + len(answer.hits)
    return end if answer.hits and end < videos else None


def failure_as_json(query: str, message: str, split: str, videos: int) -> dict[str, Any]:
    """The JSON of a query that failed: no results, and `error`."""
    failed = Answer(Caption("", "", query), [], None, None, 0.0)
    return {**as_json(failed, split, videos), "error": message}


def _hit_as_json(hit: Hit, several: bool, clips: Clips | None) -> dict[str, Any]:
    moments = [_moment_as_json(moment, hit.duration) for moment in (hit.moment, *hit.further)]
    if clips is not None:
        for place, moment in enumerate(moments, start=1):
            path = clips.get((hit.rank, place))
            moment["clip"] = None if path is None else str(path)
    return {
        "rank": hit.rank,
        "video_id": hit.video_id,
        "score": hit.scores[FUSED],
        "scores": hit.scores,
        "best_frames": hit.best_frames,
        "duration": hit.duration,
        "moment": moments[0],
        **({"moments": moments} if several else {}),
        "timeline": list(hit.timeline),
    }


def _moment_as_json(moment: Moment, duration: float | None) -> dict[str, Any]:
    times = {name: getattr(moment, name) for name in ("start", "end", "peak")}
    seconds = {f"{name}_seconds": duration and value * duration for name, value in times.items()}
    return {**times, "score": moment.score, **seconds}


def as_text(answer: Answer, videos: int, blocks: str, columns: int) -> str:
    """The result of one query for a terminal of `columns` columns; `blocks` draw the timelines, lowest first.

    All timelines share one scale, from the lowest score in any of them to the highest. Brackets mark the moment.
    """
    caption = answer.caption
    name = f"{clean(caption.id)}: " if caption.id else ""
    lines = [f"{name}{clean(caption.text)}  ({videos} videos, {1000 * answer.seconds:.0f} ms)"]
    if answer.note:
        lines.append(f"note: {answer.note}")
    if (confidence := confidence_text(answer)) is not None:
        lines.append(confidence)
    if answer.right_rank is not None:
        lines.append(f"its own video {clean(caption.video_id)} has rank {answer.right_rank} of {videos}")
    heads = [
        f"{hit.rank:3d}{'*' if hit.video_id == caption.video_id else ' '} {clean(hit.video_id)}" for hit in answer.hits
    ]
    spans = [span_text(hit) for hit in answer.hits]
    head_width, span_width = (max(map(len, texts), default=0) for texts in (heads, spans))
    width = columns - head_width - span_width - 14  # score, blanks and brackets
    width = min(max(width, _MIN_COLUMNS), _MAX_COLUMNS)
    scale = timeline_scale(answer.hits)
    for hit, head, span in zip(answer.hits, heads, spans, strict=True):
        score = f"{hit.scores[FUSED]:.4f}"
        lines.append(f"{head:{head_width}}  {score}  {span:{span_width}}  {draw_timeline(hit, scale, width, blocks)}")
        if hit.further:
            also = "; ".join(f"{moment_text(hit, moment)} ({moment.score:.4f})" for moment in hit.further)
            lines.append(f"     also {also}")
    return "\n".join(lines)


def confidence_text(answer: Answer) -> str | None:
    """What is known of the first result; None if that is nothing.

    >>> from method.data.captions import Caption
    >>> unsure = Answer(Caption("", "", "a man runs"), [], None, None, 0.1, confidence=0.124, confident=False)
    >>> confidence_text(unsure)
    'no confident match: at such a score, 12% of first results were right'
    """
    if answer.confidence is None:
        return None
    rate = f"at such a score, {100 * answer.confidence:.0f}% of first results were right"
    return f"no confident match: {rate}" if answer.confident is False else rate


def span_text(hit: Hit) -> str:
    """The span of the best moment and the length of the video, in seconds, or in frames without a duration."""
    length = f"{len(hit.timeline)}" if hit.duration is None else f"{hit.duration:.1f} s"
    return f"{moment_text(hit, hit.moment)} of {length}"


def moment_text(hit: Hit, moment: Moment) -> str:
    """The span of a moment of the video, in seconds, or in frames of the timeline if the duration is unknown."""
    if hit.duration is not None:
        return f"{moment.start * hit.duration:.1f}-{moment.end * hit.duration:.1f} s"
    first, last = round(moment.start * len(hit.timeline)) + 1, round(moment.end * len(hit.timeline))
    return f"frames {first}-{last}" if last > first else f"frame {first}"


def timeline_scale(hits: Sequence[Hit]) -> tuple[float, float]:
    """Lowest and highest score of all timelines."""
    scores = [score for hit in hits for score in hit.timeline]
    return min(scores, default=0.0), max(scores, default=0.0)


def draw_timeline(hit: Hit, scale: tuple[float, float], columns: int, blocks: str) -> str:
    """A timeline in `columns` characters, with brackets around its moment.

    A column shows the highest score of the frames it overlaps, so that no peak is lost.
    """
    frames, (low, high) = len(hit.timeline), scale
    levels = []
    for column in range(columns):
        first, end = column * frames // columns, math.ceil((column + 1) * frames / columns)
        height = (max(hit.timeline[first:end]) - low) / ((high - low) or 1.0)
        levels.append(blocks[round(height * (len(blocks) - 1))])
    start = min(int(hit.moment.start * columns + 1e-9), columns - 1)
    end = max(math.ceil(hit.moment.end * columns - 1e-9), start + 1)
    return f"{''.join(levels[:start])}[{''.join(levels[start:end])}]{''.join(levels[end:])}"
