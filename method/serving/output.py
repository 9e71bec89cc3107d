"""An answer of the search as JSON for programs and as text for a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from method.data.captions import Caption
from method.serving.searcher import Answer, Hit, clean

SCHEMA = "a3prvr.search/1"
BLOCKS = "▁▂▃▄▅▆▇█"
ASCII_BLOCKS = "_.:-=+*#"  # for terminals whose encoding has no blocks
_MOST_COLUMNS, _FEWEST_COLUMNS = 48, 8


def as_json(answer: Answer, split: str, videos: int) -> dict[str, Any]:
    """An answer as plain values.

        schema      "a3prvr.search/1"; another number would mean other fields
        query       text; caption_id, video_id and right_rank of a caption of the dataset, else null. right_rank is the
                    rank of its own video as evaluation counts it, null when that is not in the corpus
        corpus      split and number of videos
        note        what to know about the query, or null
        seconds     from the query to the answer
        error       only of a query that could not be answered: why; it has no results
        results     best first: rank, video_id, score, scores (of each branch and 'fused'), duration (seconds or null),
                    best_frames: of each branch, the centre of the frame that has its score, a fraction of the video
                    moment: start, end and peak as fractions of the video, the timeline's score at the peak, and
                    start_seconds, end_seconds, peak_seconds, null without a duration
                    timeline: the score of each of T frames at equal distances over the video

    Args:
        answer: what was found.
        split: whose videos were searched.
        videos: how many they are.
    """
    caption = answer.caption
    return {
        "schema": SCHEMA,
        "query": {
            "text": caption.text,
            "caption_id": caption.id or None,
            "video_id": caption.video_id or None,
            "right_rank": answer.right_rank,
        },
        "corpus": {"split": split, "videos": videos},
        "note": answer.note,
        "seconds": answer.seconds,
        "results": [_hit_as_json(hit) for hit in answer.hits],
    }


def failure_as_json(query: str, message: str, split: str, videos: int) -> dict[str, Any]:
    """The JSON of a query that could not be answered: that of an answer without results, and `error`."""
    failed = Answer(Caption("", "", query), [], None, None, 0.0)
    return {**as_json(failed, split, videos), "error": message}


def _hit_as_json(hit: Hit) -> dict[str, Any]:
    moment = {name: getattr(hit.moment, name) for name in ("start", "end", "peak")}
    seconds = {f"{name}_seconds": hit.duration and value * hit.duration for name, value in moment.items()}
    return {
        "rank": hit.rank,
        "video_id": hit.video_id,
        "score": hit.scores["fused"],
        "scores": hit.scores,
        "best_frames": hit.best_frames,
        "duration": hit.duration,
        "moment": {**moment, "score": hit.moment.score, **seconds},
        "timeline": list(hit.timeline),
    }


def as_text(answer: Answer, videos: int, blocks: str, columns: int) -> str:
    """An answer as lines for a terminal of `columns` columns; `blocks` draw the timelines, lowest first.

    All timelines share one scale, from the lowest score in any of them to the highest. Brackets mark the moment.
    """
    caption = answer.caption
    name = f"{clean(caption.id)}: " if caption.id else ""
    lines = [f"{name}{clean(caption.text)}  ({videos} videos, {1000 * answer.seconds:.0f} ms)"]
    if answer.note:
        lines.append(f"note: {answer.note}")
    if answer.right_rank is not None:
        lines.append(f"its own video {clean(caption.video_id)} has rank {answer.right_rank} of {videos}")
    heads = [
        f"{hit.rank:3d}{'*' if hit.video_id == caption.video_id else ' '} {clean(hit.video_id)}" for hit in answer.hits
    ]
    spans = [span_text(hit) for hit in answer.hits]
    head_width, span_width = (max(map(len, texts), default=0) for texts in (heads, spans))
    room = columns - head_width - span_width - 14  # score, blanks and brackets
    room = min(max(room, _FEWEST_COLUMNS), _MOST_COLUMNS)
    scale = timeline_scale(answer.hits)
    for hit, head, span in zip(answer.hits, heads, spans, strict=True):
        score = f"{hit.scores['fused']:.4f}"
        lines.append(f"{head:{head_width}}  {score}  {span:{span_width}}  {draw_timeline(hit, scale, room, blocks)}")
    return "\n".join(lines)


def span_text(hit: Hit) -> str:
    """Where the moment is: in seconds, or in frames of the timeline where the duration is unknown."""
    start, end, frames = hit.moment.start, hit.moment.end, len(hit.timeline)
    if hit.duration is not None:
        return f"{start * hit.duration:.1f}-{end * hit.duration:.1f} s of {hit.duration:.1f} s"
    first, last = round(start * frames) + 1, round(end * frames)
    return f"frames {first}-{last} of {frames}" if last > first else f"frame {first} of {frames}"


def timeline_scale(hits: Sequence[Hit]) -> tuple[float, float]:
    """Lowest and highest score of all timelines."""
    scores = [score for hit in hits for score in hit.timeline]
    return min(scores, default=0.0), max(scores, default=0.0)


def draw_timeline(hit: Hit, scale: tuple[float, float], columns: int, blocks: str) -> str:
    """A timeline in `columns` characters and the brackets of its moment.

    A column shows the highest score of the frames that it overlaps, so that no peak is lost.
    """
    frames, (low, high) = len(hit.timeline), scale
    levels = []
    for column in range(columns):
        first, behind = column * frames // columns, math.ceil((column + 1) * frames / columns)
        share = (max(hit.timeline[first:behind]) - low) / ((high - low) or 1.0)
        levels.append(blocks[round(share * (len(blocks) - 1))])
    start = min(int(hit.moment.start * columns + 1e-9), columns - 1)
    end = max(math.ceil(hit.moment.end * columns - 1e-9), start + 1)
    return f"{''.join(levels[:start])}[{''.join(levels[start:end])}]{''.join(levels[end:])}"
