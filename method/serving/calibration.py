"""Confidence: how often the first result of a search was right at such a score.

Fitted on captions that the model was not trained on. The curve is isotonic regression (Barlow et al., Statistical
Inference under Order Restrictions, 1972) by pool-adjacent-violators: a higher score never gets a lower confidence, and
no shape is assumed. Each block counts one query more, right as often as all are, so that few queries give neither 0 nor
1; between the blocks the curve is linear. A logistic curve (Platt, Probabilistic Outputs for Support Vector Machines,
1999) would need fewer queries, but stays wrong where the rate does not go from 0 to 1.

Letters: Q queries, B blocks of queries in the order of their scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from method.runtime.errors import InputError
from method.runtime.files import digest_of

Floats = npt.NDArray[np.floating[Any]]
Booleans = npt.NDArray[np.bool_]

_BINS = 10


@dataclass(frozen=True)
class ScoreScale:
    """What scores depend on: they are comparable only if all of it is equal.

    checkpoint: digest of its file. weights: branch -> weight in the fused score. precision: of the embeddings.
    """

    checkpoint: str
    weights: Mapping[str, float]
    precision: str


@dataclass(frozen=True)
class Bin:
    """Queries of similar confidence: its mean, the fraction of them whose first result was right, their number."""

    confidence: float
    right: float
    queries: int


@dataclass(frozen=True)
class Calibration:
    """The confidence of each score, and what it was fitted on.

    curve: scores and their confidences, both ascending. reliability: of queries that were not used for the fit: that of
        each half of the videos, by a curve of the other half.
    """

    scale: ScoreScale
    dataset: str
    videos: int
    queries: int
    curve: tuple[tuple[float, float], ...]
    reliability: tuple[Bin, ...]

    def confidence(self, score: float) -> float:
        """How often the first result was right at such a score, 0 to 1."""
        return float(confidences(self.curve, np.array([score]))[0])

    def note(self, dataset: str, videos: int) -> str | None:
        """A remark for searches of other videos than those of the fit, None for the same."""
        if (dataset, videos) == (self.dataset, self.videos):
            return None
        remark = "; first results are wrong more often than it says" if videos > self.videos else ""
        return f"the confidence is that of a search in {self.videos} videos of {self.dataset}{remark}"

    @property
    def error(self) -> float:
        """The mean difference between confidence and fraction right in `reliability`, weighted by queries.

        Expected calibration error: Naeini et al., Obtaining Well Calibrated Probabilities Using Bayesian Binning, 2015.
        """
        return sum(own.queries * abs(own.confidence - own.right) for own in self.reliability) / self.queries


@dataclass(frozen=True)
class Confidence:
    """Judges the first result of a search.

    calibration: None if there is none. minimum: confidence below which there is no confident match; 0: not judged.
    note: for the user, about collections other than the one of the fit.
    """

    calibration: Calibration | None = None
    minimum: float = 0.0
    note: str | None = None

    def of(self, score: float) -> tuple[float | None, bool | None]:
        """The confidence, and whether it is high enough; None for what is not known or not wanted."""
        if self.calibration is None:
            return None, None
        confidence = self.calibration.confidence(score)
        return confidence, confidence >= self.minimum if self.minimum else None


def fit(
    scores_Q: Floats, right_Q: Booleans, video_ids: Sequence[str], scale: ScoreScale, dataset: str, videos: int
) -> Calibration:
    """Fit a calibration, and measure its reliability by two halves of the videos.

    Args:
        scores_Q: score of the first result of each query, finite.
        right_Q: whether it was right.
        video_ids: the video that each query describes.
        scale: of the scores.
        dataset: name of the dataset of the queries.
        videos: number of videos searched.

    Raises:
        InputError: for queries of fewer than two videos.
    """
    described = sorted(set(video_ids), key=digest_of)  # an order that does not depend on that of the dataset
    if len(described) < 2:
        raise InputError(f"captions of {len(described)} searched videos to fit the confidence on, expected at least 2")
    first = set(described[::2])
    first_Q = np.array([video_id in first for video_id in video_ids])
    held_out_Q = np.empty(len(scores_Q))
    for half_Q in (first_Q, ~first_Q):
        held_out_Q[half_Q] = confidences(fit_curve(scores_Q[~half_Q], right_Q[~half_Q]), scores_Q[half_Q])
    curve = fit_curve(scores_Q, right_Q)
    return Calibration(scale, dataset, videos, len(scores_Q), curve, reliability(held_out_Q, right_Q))


def fit_curve(scores_Q: Floats, right_Q: Booleans) -> tuple[tuple[float, float], ...]:
    """The curve of confidence over score, as points; constant beyond the first and last."""
    levels, index_Q = np.unique(scores_Q, return_inverse=True)
    counts, right = np.bincount(index_Q).astype(np.float64), np.bincount(index_Q, right_Q)
    values = isotonic(right / counts, counts)
    _, block = np.unique(values, return_inverse=True)
    counts_B = np.bincount(block, counts).astype(np.float64)
    centres_B = np.bincount(block, counts * levels) / counts_B
    smoothed_B = (np.bincount(block, right) + right_Q.mean()) / (counts_B + 1)
    smoothed_B = isotonic(smoothed_B, counts_B + 1)  # small blocks move more
    return tuple(zip(centres_B.tolist(), smoothed_B.tolist(), strict=True))


def isotonic(values: Floats, weights: Floats) -> Floats:
    """The non-decreasing sequence with the least weighted squared distance, by pool-adjacent-violators.

    >>> isotonic(np.array([0.0, 1.0, 0.0, 0.5, 1.0]), np.ones(5)).tolist()
    [0.0, 0.5, 0.5, 0.5, 1.0]
    """
    blocks: list[tuple[float, float, int]] = []  # mean, weight and length of each block
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        mean, total, length = value, weight, 1
        while blocks and blocks[-1][0] >= mean:
            before, its, count = blocks.pop()
            mean, total, length = (before * its + mean * total) / (its + total), its + total, count + length
        blocks.append((mean, total, length))
    return np.repeat([mean for mean, _, _ in blocks], [length for _, _, length in blocks])


def confidences(curve: Sequence[tuple[float, float]], scores_Q: Floats) -> Floats:
    """The confidence of each score, (Q,)."""
    points = np.array(curve)
    return np.interp(scores_Q, points[:, 0], points[:, 1])


def reliability(confidence_Q: Floats, right_Q: Booleans) -> tuple[Bin, ...]:
    """The queries in ten bins of equal width by their confidence, without empty ones."""
    bin_Q = np.minimum((confidence_Q * _BINS).astype(int), _BINS - 1)
    members = [bin_Q == number for number in range(_BINS)]
    return tuple(
        Bin(float(confidence_Q[own].mean()), float(right_Q[own].mean()), int(own.sum())) for own in members if own.any()
    )
