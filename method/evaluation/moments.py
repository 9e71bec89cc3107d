"""Moments: when in a video a caption's scene is seen, and what is known of that.

An addition of this program; neither the paper nor the published program reports moments.
Letters: Q queries, T frames of a timeline, D width.
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

from method.model.scoring import fuse
from method.runtime.errors import InputError, summarize
from method.runtime.files import read_text, split_lines

log = logging.getLogger(__name__)

# Cosines of float32 vectors are only good to about this much; a timeline that varies less is flat.
_FLAT = 1e-6
_LONGEST = 1e9  # seconds; what is beyond is no time, infinity and NaN included


@dataclass(frozen=True)
class Moment:
    """A span of a video and its best frame, all as fractions 0 to 1 of the video; score: the timeline's at the peak.

    The score is not the video's: branches may score a video by different frames, a timeline has one clock.
    """

    start: float
    end: float
    peak: float
    score: float


@dataclass(frozen=True)
class TrueMoment:
    """The moment that a caption was written for, in seconds, inside its video of `duration` seconds."""

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


def frame_timeline(keys: Mapping[str, Tensor], vectors: Mapping[str, Tensor], fusion_weight: float) -> Tensor:
    """How well each moment of one video fits one query, (T,); see `frame_timelines`.

    Args:
        keys: branch -> normalised frame keys (n, D) of the video; n may differ between branches.
        vectors: branch -> normalised query vector (D,).
        fusion_weight: share of the action branch.
    """
    return frame_timelines(keys, {name: vector_D[None] for name, vector_D in vectors.items()}, fusion_weight)[0]


def frame_timelines(keys: Mapping[str, Tensor], vectors: Mapping[str, Tensor], fusion_weight: float) -> Tensor:
    """How well each moment of one video fits each query, (Q, T).

    A branch's timeline is the cosine of each of its frames. Frames divide the video evenly, so the timelines are
    brought to the clock of the longest by linear interpolation between frame centres, and fused as the scores are.

    Args:
        keys: branch -> normalised frame keys (n, D) of the video; n may differ between branches.
        vectors: branch -> normalised query vectors (Q, D).
        fusion_weight: share of the action branch.
    """
    longest = max(len(keys_nD) for keys_nD in keys.values())
    return fuse({name: resampled(vectors[name] @ keys[name].t(), longest) for name in keys}, fusion_weight)


def resampled(timelines_Qn: Tensor, length: int) -> Tensor:
    """Timelines of n frames at the centres of `length` frames of the same video, (Q, length).

    Linear between frame centres; before the first centre and behind the last its own value.

    >>> resampled(torch.tensor([[0.0, 1.0]]), 4).tolist()
    [[0.0, 0.25, 0.75, 1.0]]
    """
    if timelines_Qn.shape[1] == length:
        return timelines_Qn
    return torch.nn.functional.interpolate(timelines_Qn[None], size=length, mode="linear", align_corners=False)[0]


def best_moment(timeline_T: Tensor | Sequence[float] | npt.NDArray[Any]) -> Moment:
    """The best frame of a timeline, on the CPU, and the span around it: its full width at half maximum.

    The peak is the highest frame, the first of equals, and `peak` its centre. The span grows from it to both sides as
    long as the score is at least halfway between the timeline's lowest score and its highest, so it is one frame wide
    or wider. A timeline without a peak (one frame, or no differences beyond rounding) gives the whole video.
    """
    scores_T = np.asarray(timeline_T, dtype=np.float64)
    length = len(scores_T)
    peak = int(scores_T.argmax())
    lowest, highest = float(scores_T.min()), float(scores_T[peak])
    first, behind = 0, length
    if highest - lowest > _FLAT:
        below = np.flatnonzero(scores_T < (lowest + highest) / 2)
        place = int(np.searchsorted(below, peak))
        first = int(below[place - 1]) + 1 if place > 0 else 0
        behind = int(below[place]) if place < len(below) else length
    return Moment(first / length, behind / length, (peak + 0.5) / length, highest)


def iou(a: tuple[float, float], b: tuple[float, float]) -> float:
    """Intersection over union of two spans (start, end); 0 for two without length.

    >>> iou((0.0, 0.5), (0.25, 0.75))
    0.3333333333333333
    """
    shared = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    union = (a[1] - a[0]) + (b[1] - b[0]) - shared
    return shared / union if union > 0 else 0.0


def read_moments(path: Path, caption_ids: Collection[str]) -> dict[str, TrueMoment] | None:
    """Read the known moments of captions; None, and a line in the log, when there is no such file.

    Each line is {"cap_id", "start", "end", "duration"}, times in seconds. Not every caption needs one. Moments are cut
    to their video; one that then has no length is left out with a warning, and so are captions that are not in
    `caption_ids`.

    Raises:
        InputError: naming file and line, for a line that is no such object, times that are not numbers or out of
            order, and a caption that occurs twice.
    """
    if not path.exists():
        log.info("moments are not known: no %s", path)
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
        log.warning("%s: left out, outside their video (%d): %s", path, len(empty), summarize(empty))
    return moments


def _parse(line: str) -> tuple[str, TrueMoment]:
    """One line's caption id and moment, cut to its video. ValueError that says what is wrong."""
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
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _LONGEST:
        raise ValueError(f"{field} of {row['cap_id']!r} is {value!r}, expected seconds")
    return float(value)
