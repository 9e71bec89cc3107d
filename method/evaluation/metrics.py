"""Ranks and recall. Each caption has one target video; a tie counts against the caption."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

RECALL_AT = (1, 5, 10, 100)
RECALLS = {**{f"r{k}": f"R@{k}" for k in RECALL_AT}, "sumr": "SumR"}  # the names in metrics.json, and as printed
FUSED = "fused"  # name of the fused score; the others are named after their branches
Ranks = npt.NDArray[np.int64]


def ranks_of(scores_qV: Tensor, target_q: Tensor) -> Tensor:
    """Rank of each query's target video, (q,): how many videos score at least as much, itself included.

    >>> ranks_of(torch.tensor([[0.1, 0.9, 0.5], [0.3, 0.3, 0.3]]), torch.tensor([2, 0])).tolist()
    [2, 3]
    """
    target_scores_q1 = scores_qV.gather(1, target_q[:, None])
    return (scores_qV >= target_scores_q1).sum(1)


def retrieval_metrics(ranks: Ranks) -> dict[str, float]:
    """R@1, 5, 10 and 100 in percent, their sum, median and mean rank, and mAP, the mean of 1/rank.

    Ranks count from 1. ValueError without any.

    >>> metrics = retrieval_metrics(np.array([1, 4, 200, 7]))
    >>> metrics["r1"], metrics["r5"], metrics["sumr"], metrics["medr"]
    (25.0, 50.0, 225.0, 5.5)
    """
    if len(ranks) == 0:
        raise ValueError("no ranks, expected at least one")
    recalls = {f"r{k}": 100.0 * int(np.sum(ranks <= k)) / len(ranks) for k in RECALL_AT}
    return {
        **recalls,
        "sumr": sum(recalls.values()),
        "medr": float(np.median(ranks)),
        "meanr": float(np.mean(ranks)),
        "map": float(np.mean(1.0 / ranks)),
    }


def distinct_scores(ranks: Mapping[str, Ranks]) -> dict[str, Ranks]:
    """The ranks worth showing: those of each branch and fused, or of the only branch, whose fused score is its own.

    The last one is the main score of the model.
    """
    return dict(ranks) if len(ranks) > 2 else {name: ranks[name] for name in ranks if name != FUSED}


def all_finite(scores_qV: Tensor) -> bool:
    """Whether every cosine is finite; NaN would silently rank first.

    >>> all_finite(torch.tensor([[0.5, -1.0]])), all_finite(torch.tensor([[0.5, torch.nan]]))
    (True, False)
    """
    return bool(torch.isfinite(scores_qV.sum()))  # NaN and infinity survive a sum, and cosines never overflow one


def non_finite_score(scores: Mapping[str, Tensor]) -> str | None:
    """Name of the first of the branches' scores (q, V) and 'fused' that is not all finite; None when all are.

    The fused score is not finite where a branch's is not, whatever the weights, so finite scores are read only once.
    """
    if all_finite(scores[FUSED]):
        return None
    return next(name for name, scores_qV in scores.items() if not all_finite(scores_qV))
