"""How far recalls would differ with other queries: bootstrap intervals and permutation tests, clustered by video.

Captions of one video succeed or fail together, so that whole videos are drawn, each with all its captions (Field and
Welsh, Bootstrapping clustered data, 2007). Weights, candidate videos and so the rank of a caption stay as they are:
nothing here covers the differences between training seeds.

Letters: Q captions, C videos that have captions, K recalls (R@1, 5, 10, 100 and their sum), M columns, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from method.evaluation.metrics import RECALL_AT, RECALLS, Ranks

LEVEL = 0.95
RESAMPLES = 10_000
SEED = 0
_CHUNK = 2**20  # draws at a time

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Interval = tuple[float, float]


@dataclass(frozen=True)
class Difference:
    """The difference of a metric between two rankings of the same captions.

    value: second minus first, in points. interval: its bootstrap interval. p: the p-value of the permutation test.
    """

    value: float
    interval: Interval
    p: float


def hits_at_each(ranks_Q: Ranks) -> Floats:
    """Whether each caption's video is among the first 1, 5, 10 and 100, as 0 or 1, and the sum of these, (Q, K).

    >>> hits_at_each(np.array([1, 7])).tolist()
    [[1.0, 1.0, 1.0, 1.0, 4.0], [0.0, 0.0, 1.0, 1.0, 2.0]]
    """
    found_QK = (ranks_Q[:, None] <= np.array(RECALL_AT)).astype(np.float64)
    return np.column_stack([found_QK, found_QK.sum(1)])


def recall_intervals(
    ranks: Mapping[str, Ranks], video_ids: Sequence[str], *, resamples: int = RESAMPLES, seed: int = SEED
) -> dict[str, dict[str, Interval]] | None:
    """The 95% percentile bootstrap interval of every recall, in percent, and of SumR, by score.

    All scores share their resamples. A recall that all captions or none reach gets an interval without width.

    Args:
        ranks: score name -> rank of each caption's video, (Q,).
        video_ids: the video of each caption.
        resamples: R.
        seed: of the resamples.

    Returns:
        None for fewer than two videos, which say nothing about other videos.
    """
    cluster_Q = _clusters(video_ids)
    if cluster_Q.max() == 0:
        return None
    columns = [np.ones((len(cluster_Q), 1)), *(hits_at_each(ranks_Q) for ranks_Q in ranks.values())]
    totals_RM = _resampled(_sums(np.column_stack(columns), cluster_Q), resamples, seed)
    recalls_RM = 100 * totals_RM[:, 1:] / totals_RM[:, :1]
    bounds = iter(_percentiles(recalls_RM))
    return {name: {key: next(bounds) for key in RECALLS} for name in ranks}


def paired_differences(
    first_Q: Ranks, second_Q: Ranks, video_ids: Sequence[str], *, resamples: int = RESAMPLES, seed: int = SEED
) -> dict[str, Difference] | None:
    """By how much every recall and SumR of the second ranking is higher, in points, on the same captions.

    The p-value is two-sided: the share of random exchanges of the two rankings, for all captions of a video together,
    after which the difference is at least as large as it is. The observed one counts as one of them (Phipson and
    Smyth 2010), so that it is at least 1 / (R + 1). None for fewer than two videos.
    """
    cluster_Q = _clusters(video_ids)
    if cluster_Q.max() == 0:
        return None
    gain_QK = hits_at_each(second_Q) - hits_at_each(first_Q)
    sums_CM = _sums(np.column_stack([np.ones(len(gain_QK)), gain_QK]), cluster_Q)
    totals_RM = _resampled(sums_CM, resamples, seed)
    intervals = _percentiles(100 * totals_RM[:, 1:] / totals_RM[:, :1])
    gain_K = sums_CM[:, 1:].sum(0)
    exchanged_RK = _exchanged(sums_CM[:, 1:], resamples, seed)
    p_K = (1 + (np.abs(exchanged_RK) >= np.abs(gain_K)).sum(0)) / (resamples + 1)  # sums of integers: exact
    values_K = 100 * gain_K / len(gain_QK)
    return {
        key: Difference(float(value), interval, float(p))
        for key, value, interval, p in zip(RECALLS, values_K, intervals, p_K, strict=True)
    }


def _clusters(video_ids: Sequence[str]) -> Indices:
    """Number of each caption's video, counted from 0 in order of appearance, (Q,)."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in video_ids], dtype=np.int64)


def _sums(values_QM: Floats, cluster_Q: Indices) -> Floats:
    """Sums over the captions of each video, (C, M)."""
    return np.column_stack([np.bincount(cluster_Q, weights=column_Q) for column_Q in values_QM.T])


def _resampled(sums_CM: Floats, resamples: int, seed: int) -> Floats:
    """Totals (R, M) over C videos drawn with replacement."""
    clusters = len(sums_CM)

    def draw_counts(random: np.random.Generator, count: int) -> Floats:
        drawn_rC = random.integers(0, clusters, (count, clusters)) + clusters * np.arange(count)[:, None]
        counts = np.bincount(drawn_rC.ravel(), minlength=count * clusters)
        return counts.reshape(count, clusters).astype(np.float64)

    return _weighted(sums_CM, draw_counts, resamples, np.random.default_rng(seed))


def _exchanged(sums_CM: Floats, resamples: int, seed: int) -> Floats:
    """Totals (R, M) after the sign of each video's sums is flipped or kept at random."""

    def draw_signs(random: np.random.Generator, count: int) -> Floats:
        return 1 - 2 * random.integers(0, 2, (count, len(sums_CM)), dtype=np.int8).astype(np.float64)

    return _weighted(sums_CM, draw_signs, resamples, np.random.default_rng([seed, 1]))


def _weighted(
    sums_CM: Floats,
    draw: Callable[[np.random.Generator, int], Floats],
    resamples: int,
    random: np.random.Generator,
) -> Floats:
    """Totals (R, M) of the sums with drawn weights (r, C), in chunks of bounded memory."""
    return np.concatenate([draw(random, count) @ sums_CM for count in _chunks(resamples, len(sums_CM))])


def _chunks(resamples: int, clusters: int) -> Iterator[int]:
    size = max(1, _CHUNK // clusters)
    for start in range(0, resamples, size):
        yield min(size, resamples - start)


def _percentiles(values_RM: Floats) -> list[Interval]:
    """The middle 95% of each column."""
    tail = (1 - LEVEL) / 2
    low_M, high_M = np.quantile(values_RM, [tail, 1 - tail], axis=0)
    return [(float(low), float(high)) for low, high in zip(low_M, high_M, strict=True)]
