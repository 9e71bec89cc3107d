"""The numbers behind the figures of a report.

Letters: Q captions, V videos. Ranks count from 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from method.evaluation.metrics import RECALL_AT, Ranks

Reals = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]

OUTCOMES = ("better than both", "as good as the better", "between", "worse than both")
_HISTOGRAM_ENDS = (1, 5, 10, 20, 50)


def shown_scores(ranks: Mapping[str, Ranks]) -> dict[str, Ranks]:
    """The scores worth showing: action, object and fused, or the only branch, to which fused is equal.

    The last one is the score that a report is mainly about.
    """
    return dict(ranks) if len(ranks) == 3 else {name: ranks[name] for name in ranks if name != "fused"}


def recall_curve(ranks_Q: Ranks, videos: int) -> Reals:
    """Recall at 1, 2, ... V in percent, (V,).

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
    """How many captions have a rank in each bin."""
    return [int(((first <= ranks_Q) & (ranks_Q <= last)).sum()) for first, last in bins]


def fusion_outcomes(action_Q: Ranks, object_Q: Ranks, fused_Q: Ranks) -> Places:
    """For each caption the place in OUTCOMES of what fusing did to its rank, (Q,).

    >>> fusion_outcomes(np.array([5, 5, 5, 5]), np.array([9, 9, 9, 9]), np.array([4, 5, 9, 10])).tolist()
    [0, 1, 2, 3]
    """
    better, worse = np.minimum(action_Q, object_Q), np.maximum(action_Q, object_Q)
    return (fused_Q >= better).astype(np.int64) + (fused_Q > better) + (fused_Q > worse)


@dataclass(frozen=True)
class Agreement:
    """Captions by which branches find their video among the first K, and of how many the fused score does too."""

    found_by: str
    captions: int
    found_fused: int


def agreement(action_Q: Ranks, object_Q: Ranks, fused_Q: Ranks, k: int) -> list[Agreement]:
    """Which branches find the video within the first `k`, and whether the fused score does too."""
    by_action, by_object, by_fused = action_Q <= k, object_Q <= k, fused_Q <= k
    cases = {
        "both branches": by_action & by_object,
        "action only": by_action & ~by_object,
        "object only": ~by_action & by_object,
        "neither": ~by_action & ~by_object,
    }
    return [Agreement(name, int(case.sum()), int((case & by_fused).sum())) for name, case in cases.items()]


@dataclass(frozen=True)
class Group:
    """Captions that have something in common, and their SumR by score.

    error: half of a 95% interval of each SumR, as if captions were drawn independently. An empty group has neither.
    """

    label: str
    captions: int
    sumr: dict[str, float]
    error: dict[str, float]


def sumr_by_group(ranks: Mapping[str, Ranks], group_Q: Places, labels: Sequence[str]) -> list[Group]:
    """SumR within each group; `group_Q` holds each caption's place in `labels`, -1 for captions in none."""
    groups = []
    for place, label in enumerate(labels):
        own = group_Q == place
        sumr, error = {}, {}
        for name, ranks_Q in ranks.items() if own.any() else ():
            share_q = 100.0 * sum((ranks_Q[own] <= k).astype(np.float64) for k in RECALL_AT)
            sumr[name] = float(share_q.mean())
            error[name] = float(1.96 * share_q.std() / np.sqrt(len(share_q)))
        groups.append(Group(label, int(own.sum()), sumr, error))
    return groups


def whole_number_bins(firsts: Sequence[int]) -> tuple[list[tuple[int, float]], list[str]]:
    """Bins of whole numbers from the first of each, the last without an end, and their labels.

    >>> whole_number_bins([1, 2, 5])
    ([(1, 1), (2, 4), (5, inf)], ['1', '2–4', '5 or more'])
    """
    bins = [(first, behind - 1) for first, behind in zip(firsts, [*firsts[1:], np.inf], strict=True)]
    labels = [f"{first}" if first == last else f"{first}–{last}" for first, last in bins[:-1]]
    return bins, [*labels, f"{firsts[-1]} or more"]


def even_bins(values_Q: Places, count: int) -> tuple[list[tuple[int, float]], list[str]]:
    """At most `count` bins of whole numbers with about equally many values each, and their labels.

    >>> even_bins(np.array([3, 4, 7, 9]), 2)
    ([(3, 4), (5, 9)], ['3–4', '5–9'])
    """
    quantiles = np.quantile(values_Q, np.arange(1, count + 1) / count, method="inverted_cdf").astype(int)
    lasts = np.unique(quantiles).tolist()
    bins = list(zip([int(values_Q.min()), *(last + 1 for last in lasts)], lasts, strict=False))
    return bins, [f"{first}" if first == last else f"{first}–{last}" for first, last in bins]


def place_in_bins(values_Q: Places, bins: Sequence[tuple[int, float]]) -> Places:
    """The bin of each value, -1 for those in none, (Q,)."""
    places_Q = np.full(len(values_Q), -1)
    for place, (first, last) in enumerate(bins):
        places_Q[(first <= values_Q) & (values_Q <= last)] = place
    return places_Q


def place_in_ratios(ratios_Q: Reals, edges: Sequence[float]) -> Places:
    """The interval (edge, next edge] of each ratio above 0, -1 where the ratio is NaN, (Q,).

    >>> place_in_ratios(np.array([0.1, 0.2, 0.21, 1.0, np.nan]), [0, 0.2, 0.4, 1]).tolist()
    [0, 0, 1, 2, -1]
    """
    places_Q = np.searchsorted(edges, ratios_Q, side="left") - 1
    return np.where(np.isnan(ratios_Q), -1, places_Q)
