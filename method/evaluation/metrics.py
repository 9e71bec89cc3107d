"""Recall and ranks. One video is right for each caption; a tie counts against the caption."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

RECALL_AT = (1, 5, 10, 100)
Ranks = npt.NDArray[np.int64]


def ranks_of(scores_qV: Tensor, right_q: Tensor) -> Tensor:
    """Rank of each query's right video: how many videos score at least as much as it, itself included. (q,).

    >>> ranks_of(torch.tensor([[0.1, 0.9, 0.5], [0.3, 0.3, 0.3]]), torch.tensor([2, 0])).tolist()
    [2, 3]
    """
    own_q1 = scores_qV.gather(1, right_q[:, None])
    return (scores_qV >= own_q1).sum(1)


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


def check_finite(scores_qV: Tensor) -> bool:
    """Whether every cosine is a number; NaN would rank first without anyone noticing.

    >>> check_finite(torch.tensor([[0.5, -1.0]])), check_finite(torch.tensor([[0.5, torch.nan]]))
    (True, False)
    """
    return bool(torch.isfinite(scores_qV.sum()))  # what is not finite stays so in a sum, and cosines never overflow


def broken_score(scores: Mapping[str, Tensor]) -> str | None:
    """The first of the branches' scores (q, V) and 'fused' that is not all numbers; None when all are.

    Whatever the weights, the fused score is broken where a branch's is, so that good scores are read once.
    """
    if check_finite(scores["fused"]):
        return None
    return next(name for name, scores_qV in scores.items() if not check_finite(scores_qV))
