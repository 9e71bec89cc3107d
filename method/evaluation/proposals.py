"""Several moments of a video: proposed around the peaks of its timeline, the lower of two that overlap suppressed.

Every peak of the timeline, a frame that scores more than the frames around it, proposes the span around it in which the
score is at least halfway between the timeline's lowest and the peak: its full width at half maximum, as
`method.evaluation.moments.best_moment` has it for the highest. The score of a moment is that of its peak. From the
highest peak down, equals in order of time, a moment is dropped if its IoU with a better one that was kept is above 0.5
(greedy non-maximum suppression). So the first moment is always the best one, and lower peaks give other places or wider
spans.

Letters: Q timelines, T frames of each, N moments of all timelines, a timelines in a round, R rounds so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from method.evaluation.moments import FLAT, Moment

Scores = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Proposals:
    """Moments of timelines of T frames, back to back; those of a timeline are together, best first.

    timeline: index of the timeline. first, end: the span in frames, without `end`. peak: the best frame. score: its
    score. All are (N,).
    """

    timeline: Indices
    first: Indices
    end: Indices
    peak: Indices
    score: Scores
    frames: int

    def overlaps(self, spans_N2: Scores) -> Scores:
        """IoU of each moment with a span, given as fractions of the video, (N,)."""
        first_N, end_N = self.first / self.frames, self.end / self.frames
        both_N = np.maximum(np.minimum(end_N, spans_N2[:, 1]) - np.maximum(first_N, spans_N2[:, 0]), 0.0)
        return both_N / ((end_N - first_N) + (spans_N2[:, 1] - spans_N2[:, 0]) - both_N)


def propose(timelines_QT: npt.NDArray[Any], most: int | None = None, least_Q: Scores | None = None) -> Proposals:
    """The moments of each timeline.

    Args:
        timelines_QT: finite scores.
        most: how many moments of a timeline are wanted; None for all.
        least_Q: moments that score less are not wanted.
    """
    scores_QT = np.asarray(timelines_QT, dtype=np.float64)
    count, length = scores_QT.shape
    rows_Q, lowest_Q, highest_Q = np.arange(count), scores_QT.min(1), scores_QT.max(1)
    flat_Q = highest_Q - lowest_Q <= FLAT
    level_QT = (lowest_Q[:, None] + scores_QT) / 2  # half the height of each frame
    level_QT[flat_Q] = -np.inf  # the span of a flat timeline is the whole video
    candidates_QT = np.where(_peaks(scores_QT) & (scores_QT - lowest_Q[:, None] > FLAT), scores_QT, -np.inf)
    candidates_QT[flat_Q, scores_QT[flat_Q].argmax(1)] = highest_Q[flat_Q]
    if least_Q is not None:
        candidates_QT[candidates_QT < least_Q[:, None]] = -np.inf
    kept = _Kept(count)
    while len(rows_Q):  # the highest remaining peak of each timeline that has one
        peak_a = candidates_QT[rows_Q].argmax(1)
        left_a = candidates_QT[rows_Q, peak_a] > -np.inf
        rows_Q, peak_a = rows_Q[left_a], peak_a[left_a]
        first_a, end_a = _spans(scores_QT[rows_Q], peak_a, level_QT[rows_Q, peak_a])
        candidates_QT[rows_Q, peak_a] = -np.inf
        kept.add(rows_Q, first_a, end_a, peak_a)
        if most is not None:
            rows_Q = rows_Q[kept.number_Q[rows_Q] < most]
    timeline_N, first_N, end_N, peak_N = kept.moments()
    return Proposals(timeline_N, first_N, end_N, peak_N, scores_QT[timeline_N, peak_N], length)


class _Kept:
    """The moments that are kept, in frames."""

    def __init__(self, count: int) -> None:
        self.number_Q = np.zeros(count, np.int64)
        # First and end of what each round kept, empty where that is nothing.
        self._spans_2QR: Indices = np.zeros((2, count, 0), np.int64)
        self._rounds: list[Indices] = [np.zeros((4, 0), np.int64)]

    def add(self, rows_a: Indices, first_a: Indices, end_a: Indices, peak_a: Indices) -> None:
        """Keep moments of the timelines `rows_a` that do not overlap too much with the moments kept before."""
        first_aR, end_aR = self._spans_2QR[:, rows_a]
        both_aR = np.minimum(end_aR, end_a[:, None]) - np.maximum(first_aR, first_a[:, None])  # negative: apart
        all_aR = (end_aR - first_aR) + (end_a - first_a)[:, None] - both_aR
        new_a = ~(2 * both_aR > all_aR).any(1)  # an IoU above 0.5, in whole frames
        found_4a = np.stack([rows_a, first_a, end_a, peak_a])[:, new_a]
        self._rounds.append(found_4a)
        round_2Q1 = np.zeros((2, len(self.number_Q), 1), np.int64)
        round_2Q1[:, found_4a[0], 0] = found_4a[1:3]
        self._spans_2QR = np.concatenate([self._spans_2QR, round_2Q1], axis=2)
        self.number_Q[found_4a[0]] += 1

    def moments(self) -> Indices:
        """Timeline, first, end and peak of each moment, (4, N), by timeline, best first."""
        found_4N = np.concatenate(self._rounds, axis=1)
        return found_4N[:, np.argsort(found_4N[0], kind="stable")]


def _spans(scores_aT: Scores, peak_a: Indices, level_a: Scores) -> tuple[Indices, Indices]:
    """First and end (a,) of the frames around each peak that score at least the level."""
    frame_T = np.arange(scores_aT.shape[1])
    below_aT = scores_aT < level_a[:, None]
    first_a = np.where(below_aT & (frame_T < peak_a[:, None]), frame_T + 1, 0).max(1)
    end_a = np.where(below_aT & (frame_T > peak_a[:, None]), frame_T, len(frame_T)).min(1)
    return first_a, end_a


def _peaks(scores_QT: Scores) -> npt.NDArray[np.bool_]:
    """Whether each frame is a peak, (Q, T): the first of equal neighbours with lower or no frames on both sides."""
    count, length = scores_QT.shape
    step_QT = np.sign(np.diff(scores_QT, axis=1))  # from each frame to the next
    rises_QT = np.hstack([np.ones((count, 1), bool), step_QT > 0])
    # The next step up or down from each frame on; down after the last.
    step_QT = np.hstack([step_QT, -np.ones((count, 1))])
    next_QT = np.where(step_QT != 0, np.arange(length), length - 1)
    next_QT = np.minimum.accumulate(next_QT[:, ::-1], axis=1)[:, ::-1]
    return rises_QT & (np.take_along_axis(step_QT, next_QT, axis=1) < 0)


def best_moments(timeline_T: torch.Tensor | Sequence[float], most: int) -> list[Moment]:
    """At most `most` moments of a timeline on the CPU, best first; the first is `best_moment`."""
    found = propose(np.asarray(timeline_T, dtype=np.float64)[None], most)
    frames = found.frames
    rows = zip(found.first.tolist(), found.end.tolist(), found.peak.tolist(), found.score.tolist(), strict=True)
    return [Moment(first / frames, end / frames, (peak + 0.5) / frames, score) for first, end, peak, score in rows]
