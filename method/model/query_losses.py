"""Losses of the queries alone, without videos: how they lie to each other.

Every process has all queries, and computes its part with its own captions as the anchors. Letters: Q captions, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from method.model.batch_scores import BatchScores, LossSettings
from method.model.scoring import cosines

_NEAR = 1e-6  # squared distances below are rounding; the root has no finite gradient at 0


def query_diverse_loss(scores: BatchScores, settings: LossSettings) -> dict[str, Tensor]:
    """Push the captions of a video apart (query diverse loss, Wang et al. 2024: GMMFormer, as its program computes it).

    The mean over all captions of log(1 + sum over the other captions of the same video of exp(alpha (cos + delta))),
    with cos between the two queries; 0 for a video's only caption. Of each branch.
    """
    labels_Q = scores.labels_Q
    siblings_QQ = (labels_Q[:, None] == labels_Q) & ~_diagonal(labels_Q)
    terms = {}
    for branch, queries_QD in scores.queries.items():
        logits_QQ = settings.diverse_scale * (cosines(queries_QD) + settings.diverse_margin)
        anchors_QQ = logits_QQ.masked_fill(~siblings_QQ, -torch.inf)[scores.shard]
        # A column of zeros is the 1, and keeps the logarithm finite.
        loss_Q = torch.cat([torch.zeros_like(anchors_QQ[:, :1]), anchors_QQ], 1).logsumexp(1)
        terms[branch] = scores.sum(loss_Q.sum()) / len(labels_Q)
    return terms


def text_structure_loss(scores: BatchScores, settings: LossSettings) -> dict[str, Tensor]:
    """Keep the distances between queries as they are between mean token features (RKD-D, Park et al. 2019).

    The Huber loss of the distances of unit vectors, both divided by their mean; averaged over pairs. Of each branch.
    """
    assert scores.tokens_QD is not None, "the text structure loss needs token features"
    target_QQ = _relative_distances(scores.tokens_QD)[scores.shard]
    pairs = max(len(scores.labels_Q) * (len(scores.labels_Q) - 1), 1)
    return {
        branch: scores.sum(F.huber_loss(_relative_distances(queries_QD)[scores.shard], target_QQ, reduction="sum"))
        / pairs
        for branch, queries_QD in scores.queries.items()
    }


def _relative_distances(rows_QD: Tensor) -> Tensor:
    """Distances between unit vectors (Q, Q), divided by the mean of those between different rows."""
    squared_QQ = (2 - 2 * cosines(rows_QD)).clamp(min=_NEAR)
    distance_QQ = squared_QQ.sqrt().masked_fill(_diagonal(rows_QD), 0.0)
    mean = distance_QQ.sum() / max(len(rows_QD) * (len(rows_QD) - 1), 1)
    return distance_QQ / mean.clamp(min=_NEAR)


def _diagonal(rows: Tensor) -> Tensor:
    return torch.eye(len(rows), dtype=torch.bool, device=rows.device)
