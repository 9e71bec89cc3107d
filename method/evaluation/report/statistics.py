"""The numbers behind the figures of a report.

Letters: Q captions, V videos. Ranks count from 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from method.evaluation.metrics import FUSED, RECALL_AT, Ranks

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

OUTCOMES = ("better than every branch", "as good as the best branch", "in between", "worse than every branch")
_HISTOGRAM_ENDS = (1, 5, 10, 20, 50)


def branch_ranks(ranks: Mapping[str, Ranks]) -> dict[str, Ranks]:
    """The ranks under the branches' own scores, without the fused one."""
    return {name: ranks_Q for name, ranks_Q in ranks.items() if name != FUSED}


def recall_curve(ranks_Q: Ranks, videos: int) -> Floats:
    """Recall at 1, 2, ..., V in percent, (V,).

    >>> recall_curve(np.array([1, 3]), 4).tolist()
    [50.0, 50.0, 100.0, 100.0]
    """
    return 100 * np.cumsum(np.bincount(ranks_Q, minlength=videos + 1)[1:]) / len(ranks_Q)


def rank_bins(videos: int) -> list[tuple[int, int]]:
    """First and last rank of the bins 1, 2-5, 6-10, 11-20, 21-50, 51-100, 101-200, ... up to V.

    >>> rank_bins(30)
    [(1, 1), (2, 5), (6, 10), (11, 20), (21, 30)]
    """
    ends = [*_HISTOGRAM_ENDS]
    while ends[-1] < videos:
        ends.append(ends[-3] * 10)
    ends = [end for end in ends if end < videos] + [videos]
    return [(before + 1, end) for before, end in zip([0, *ends], ends, strict=False)]


def rank_histogram(ranks_Q: Ranks, bins: Sequence[tuple[int, int]]) -> list[int]:
    """Number of captions whose rank is in each bin."""
    return [int(((first <= ranks_Q) & (ranks_Q <= last)).sum()) for first, last in bins]


def fusion_outcomes(ranks: Mapping[str, Ranks]) -> Indices:
    """For each caption the index in OUTCOMES of what fusion did to its rank, (Q,); of two branches or more.

    >>> ranks = {"action": [5, 5, 5, 5], "object": [9, 9, 9, 9], "fused": [4, 5, 9, 10]}
    >>> fusion_outcomes({name: np.array(values) for name, values in ranks.items()}).tolist()
    [0, 1, 2, 3]
    """
    branches_BQ, fused_Q = np.stack(list(branch_ranks(ranks).values())), ranks[FUSED]
    best_Q, worst_Q = branches_BQ.min(0), branches_BQ.max(0)
    return (fused_Q >= best_Q).astype(np.int64) + (fused_Q > best_Q) + (fused_Q > worst_Q)


@dataclass(frozen=True)
class Agreement:
    """Captions whose video is in the top K under certain branches, and for how many it is under the fused score."""

    found_by: str
    captions: int
    found_fused: int


def agreement(ranks: Mapping[str, Ranks], k: int) -> list[Agreement]:
    """Which branches rank the video in the top `k`, and whether the fused score does; of two branches or more."""
    hits = {name: ranks_Q <= k for name, ranks_Q in branch_ranks(ranks).items()}
    hits_BQ, fused_Q = np.stack(list(hits.values())), ranks[FUSED] <= k
    count_Q = hits_BQ.sum(0)
    cases = {"every branch": count_Q == len(hits)}
    if len(hits) > 2:
        cases["several branches, not all"] = (count_Q > 1) & (count_Q < len(hits))
    cases |= {f"{name} only": hits_Q & (count_Q == 1) for name, hits_Q in hits.items()}
    cases["no branch"] = count_Q == 0
    return [Agreement(name, int(case_Q.sum()), int((case_Q & fused_Q).sum())) for name, case_Q in cases.items()]


@dataclass(frozen=True)
class Group:
    """Captions that have something in common, and their SumR under each score.

    error: half-width of the 95% interval of each SumR, treating captions as independent. Both are empty without
    captions.
    """

    label: str
    captions: int
    sumr: dict[str, float]
    error: dict[str, float]


def sumr_by_group(ranks: Mapping[str, Ranks], group_Q: Indices, labels: Sequence[str]) -> list[Group]:
    """SumR within each group; `group_Q` holds each caption's index in `labels`, -1 for captions in no group."""
    groups = []
    for index, label in enumerate(labels):
        member_Q = group_Q == index
        sumr, error = {}, {}
        for name, ranks_Q in ranks.items() if member_Q.any() else ():
            recall_q = 100.0 * sum((ranks_Q[member_Q] <= k).astype(np.float64) for k in RECALL_AT)
            sumr[name] = float(recall_q.mean())
            error[name] = float(1.96 * recall_q.std() / np.sqrt(len(recall_q)))
        groups.append(Group(label, int(member_Q.sum()), sumr, error))
    return groups


def whole_number_bins(firsts: Sequence[int]) -> tuple[list[tuple[int, float]], list[str]]:
    """Bins of integers given their lower bounds, the last one open-ended, and their labels.

    >>> whole_number_bins([1, 2, 5])
    ([(1, 1), (2, 4), (5, inf)], ['1', '2–4', '5 or more'])
    """
    bins = [(first, after - 1) for first, after in zip(firsts, [*firsts[1:], np.inf], strict=True)]
    labels = [f"{first}" if first == last else f"{first}–{last}" for first, last in bins[:-1]]
    return bins, [*labels, f"{firsts[-1]} or more"]


def even_bins(values_Q: Indices, count: int) -> tuple[list[tuple[int, float]], list[str]]:
    """At most `count` bins of integers with about equally many values each, and their labels.

    >>> even_bins(np.array([3, 4, 7, 9]), 2)
    ([(3, 4), (5, 9)], ['3–4', '5–9'])
    """
    quantiles = np.quantile(values_Q, np.arange(1, count + 1) / count, method="inverted_cdf").astype(int)
    lasts = np.unique(quantiles).tolist()
    bins = list(zip([int(values_Q.min()), *(last + 1 for last in lasts)], lasts, strict=False))
    return bins, [f"{first}" if first == last else f"{first}–{last}" for first, last in bins]


def bin_indices(values_Q: Indices, bins: Sequence[tuple[int, float]]) -> Indices:
    """Index of the bin of each value, -1 for values in none, (Q,)."""
    index_Q = np.full(len(values_Q), -1)
    for index, (first, last) in enumerate(bins):
        index_Q[(first <= values_Q) & (values_Q <= last)] = index
    return index_Q


def ratio_bin_indices(ratios_Q: Floats, edges: Sequence[float]) -> Indices:
    """Index of the interval (edge, next edge] of each ratio above 0, -1 where the ratio is NaN, (Q,).

    >>> ratio_bin_indices(np.array([0.1, 0.2, 0.21, 1.0, np.nan]), [0, 0.2, 0.4, 1]).tolist()
    [0, 0, 1, 2, -1]
    """
    index_Q = np.searchsorted(edges, ratios_Q, side="left") - 1
    return np.where(np.isnan(ratios_Q), -1, index_Q)
