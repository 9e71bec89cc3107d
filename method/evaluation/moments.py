"""Moments: the span of a video that a caption describes, predicted and annotated.

Not in the paper: neither it nor the published program reports moments.
Letters: Q queries, T frames of a timeline, n frames of a branch, D width.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from method.data.captions import Caption
from method.evaluation.scorer import ScoringSettings
from method.runtime.errors import InputError, summarize
from method.runtime.files import read_text
from method.runtime.text import split_lines

log = logging.getLogger(__name__)

FLAT = 1e-6  # rounding error of float32 cosines; a timeline that varies less is flat
_MAX_SECONDS = 1e9  # larger values, infinity and NaN are rejected


@dataclass(frozen=True)
class Moment:
    """A predicted span and its best frame, as fractions 0 to 1 of the video; score: the timeline's at the peak.

    The score may be below the video's: each branch scores a video by its own best frame, a timeline fuses frame by
    frame.
    """

    start: float
    end: float
    peak: float
    score: float


@dataclass(frozen=True)
class TrueMoment:
    """The annotated moment of a caption, in seconds, inside its video of `duration` seconds."""

    start: float
    end: float
    duration: float

    @property
    def span(self) -> tuple[float, float]:
        """Start and end as fractions of the video."""
        return self.start / self.duration, self.end / self.duration

    @property
    def ratio(self) -> float:
        """The moment's share of its video."""
        return (self.end - self.start) / self.duration


def frame_timeline(frames: Mapping[str, Tensor], vectors: Mapping[str, Tensor], settings: ScoringSettings) -> Tensor:
    """Score of each frame of one video for one query, (T,); see `frame_timelines`.

    Args:
        frames: branch -> normalised frame embeddings (n, D) of the video; n may differ between branches.
        vectors: branch -> normalised query embedding (D,).
        settings: the weights of the branches.
    """
    return frame_timelines(frames, {name: vector_D[None] for name, vector_D in vectors.items()}, settings)[0]


def frame_timelines(frames: Mapping[str, Tensor], vectors: Mapping[str, Tensor], settings: ScoringSettings) -> Tensor:
    """Score of each frame of one video for each query, (Q, T).

    A branch's timeline is the cosine of each of its frames. Frames divide the video evenly, so all timelines are
    resampled to the longest by linear interpolation between frame centres, and fused as the scores are.

    Args:
        frames: branch -> normalised frame embeddings (n, D) of the video; n may differ between branches.
        vectors: branch -> normalised query embeddings (Q, D).
        settings: the weights of the branches.
    """
    longest = max(len(frames_nD) for frames_nD in frames.values())
    return settings.fuse(
        {name: resampled(settings.timelines(name, frames[name], vectors[name]), longest) for name in frames}, vectors
    )


def resampled(timelines_Qn: Tensor, length: int) -> Tensor:
    """Resample timelines (Q, n) at the centres of `length` equal frames of the same video, (Q, length).

    Linear between frame centres, constant before the first and after the last.

    >>> resampled(torch.tensor([[0.0, 1.0]]), 4).tolist()
    [[0.0, 0.25, 0.75, 1.0]]
    """
    if timelines_Qn.shape[1] == length:
        return timelines_Qn
    return torch.nn.functional.interpolate(timelines_Qn[None], size=length, mode="linear", align_corners=False)[0]


def best_moment(timeline_T: Tensor | Sequence[float] | npt.NDArray[Any]) -> Moment:
    """The best frame of a timeline, on the CPU, and the span around it: its full width at half maximum.

    `peak` is the centre of the highest frame, the first of equals. The span extends from it to both sides while the
    score is at least halfway between the timeline's lowest and highest, so it is at least one frame wide. A flat
    timeline (one frame, or no differences beyond rounding) gives the whole video.
    """
    scores_T = np.asarray(timeline_T, dtype=np.float64)
    length = len(scores_T)
    peak = int(scores_T.argmax())
    lowest, highest = float(scores_T.min()), float(scores_T[peak])
    first, end = 0, length
    if highest - lowest > FLAT:
        below = np.flatnonzero(scores_T < (lowest + highest) / 2)
        after = int(np.searchsorted(below, peak))
        first = int(below[after - 1]) + 1 if after > 0 else 0
        end = int(below[after]) if after < len(below) else length
    return Moment(first / length, end / length, (peak + 0.5) / length, highest)


def iou(a: tuple[float, float], b: tuple[float, float]) -> float:
    """Intersection over union of two spans (start, end); 0 when both are empty.

    >>> iou((0.0, 0.5), (0.25, 0.75))
    0.3333333333333333
    """
    intersection = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    union = (a[1] - a[0]) + (b[1] - b[0]) - intersection
    return intersection / union if union > 0 else 0.0


def read_moments(path: Path, caption_ids: Collection[str]) -> dict[str, TrueMoment] | None:
    """Read the annotated moments of captions; None, and a line in the log, when there is no such file.

    Each line is {"cap_id", "start", "end", "duration"}, times in seconds. Not every caption needs one. Moments are
    clipped to their video; those left empty are skipped with a warning, and so are captions not in `caption_ids`.

    Raises:
        InputError: naming file and line, for one that is not such an object, for times that are not numbers or not in
            order, and for a caption that occurs twice.
    """
    if not path.exists():
        log.info("no ground-truth moments (%s not found); moment metrics are skipped", path)
        return None
    moments: dict[str, TrueMoment] = {}
    seen: set[str] = set()
    problems, unknown, empty = [], [], []
    for number, line in enumerate(split_lines(read_text(path)), start=1):
        if not line.strip():
            continue
        try:
            caption_id, moment = _parse(line)
        except ValueError as error:
            problems.append(f"line {number}: {error}")
            continue
        if caption_id in seen:
            problems.append(f"line {number}: cap_id {caption_id!r} occurs a second time")
        elif caption_id not in caption_ids:
            unknown.append(repr(caption_id))
        elif moment.end <= moment.start:
            empty.append(repr(caption_id))
        else:
            moments[caption_id] = moment
        seen.add(caption_id)
    if problems:
        raise InputError(f"{path}: {summarize(problems)}")
    if unknown:
        log.warning("%s: captions that are not evaluated (%d): %s", path, len(unknown), summarize(unknown))
    if empty:
        log.warning("%s: skipped, outside their video (%d): %s", path, len(empty), summarize(empty))
    return moments


def _parse(line: str) -> tuple[str, TrueMoment]:
    """Caption id and moment of one line, clipped to its video. ValueError that says what is wrong."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError(f"expected a JSON object, found {line[:60]!r}") from None
    if not isinstance(row, dict) or not isinstance(row.get("cap_id"), str):
        raise ValueError(f'expected {{"cap_id": text, "start", "end", "duration"}}, found {line[:60]!r}')
    times = {field: _seconds(row, field) for field in ("start", "end", "duration")}
    start, end, duration = times.values()
    if not (duration > 0 and start <= end):
        found = ", ".join(f"{field} {value:g}" for field, value in times.items())
        raise ValueError(f"{row['cap_id']!r}: {found}: expected start <= end and a duration above 0")
    return row["cap_id"], TrueMoment(min(max(start, 0.0), duration), min(max(end, 0.0), duration), duration)


def _seconds(row: Mapping[str, Any], field: str) -> float:
    value = row.get(field)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _MAX_SECONDS:
        raise ValueError(f"{field} of {row['cap_id']!r} is {value!r}, expected seconds")
    return float(value)


def durations(captions: Sequence[Caption], moments: Mapping[str, TrueMoment]) -> dict[str, float]:
    """Seconds of each video with an annotated caption."""
    return {caption.video_id: moments[caption.id].duration for caption in captions if caption.id in moments}
