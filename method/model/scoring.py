"""Scores of queries against videos: a video scores as well as its best frame.

Letters: Q queries, B videos, N frames of all of them, D width.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from method import ops
from method.data.ragged import Ragged
from method.ops.precision import autocast


@dataclass(frozen=True)
class Similarity:
    """Scores of one branch.

    cosine_QB: largest cosine of the query and a frame embedding of each video.
    raw_QB: the same with unnormalized dot products.
    best_frame_QB: index within its video of the frame with the largest cosine.
    """

    cosine_QB: Tensor
    raw_QB: Tensor
    best_frame_QB: Tensor


def similarity(frames: Ragged, queries_QD: Tensor) -> Similarity:
    """Score every query against every video by its best frame embedding.

    >>> frames = Ragged.of([torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, -3.0]])])
    >>> scores = similarity(frames, torch.tensor([[0.0, 4.0]]))
    >>> scores.cosine_QB.tolist(), scores.raw_QB.tolist(), scores.best_frame_QB.tolist()
    ([[1.0, -1.0]], [[4.0, -12.0]], [[1, 0]])
    """
    norms_N = frames.values.float().norm(dim=-1).clamp(min=1e-12)
    query_norms_Q = queries_QD.float().norm(dim=-1).clamp(min=1e-12)
    (dots_BQ, raw_BQ), (best_BQ, _) = ops.best_dots(frames.values, norms_N.detach(), queries_QD, frames.layout)
    row_BQ = frames.layout.starts_B[:, None] + best_BQ
    best_norms_BQ = norms_N.gather(0, row_BQ.flatten()).view_as(dots_BQ)
    return Similarity((dots_BQ / (best_norms_BQ * query_norms_Q)).t(), raw_BQ.t(), best_BQ.t())


def normalized(frames: Ragged) -> Ragged:
    """Unit-length frame embeddings, whose dot products with normalized queries are cosines."""
    return frames.with_values(F.normalize(frames.values.float(), dim=-1))


def cosines(rows_ND: Tensor) -> Tensor:
    """The cosine of every two rows, (N, N), in float32 under autocast too."""
    with autocast(rows_ND.device, "off"):
        unit_ND = F.normalize(rows_ND.float(), dim=-1)
        return unit_ND @ unit_ND.t()


def fuse(scores: Mapping[str, Tensor], weights: Mapping[str, float] | Mapping[str, Tensor]) -> Tensor:
    """The sum of all branches' scores by their weights, which sum to 1; of one branch its scores themselves.

    A weight is a number or, for weights that depend on the query, a column (Q, 1).

    >>> fuse({"action": torch.ones(2), "object": torch.zeros(2)}, {"action": 0.25, "object": 0.75}).tolist()
    [0.25, 0.25]
    """
    first, *others = scores
    if len(others) < 2:  # one pass, no temporary
        return torch.lerp(scores[others[0]], scores[first], weights[first]) if others else scores[first]
    fused = scores[first] * weights[first]
    for name in others:
        weight = weights[name]
        if isinstance(weight, Tensor):
            fused = fused.addcmul(scores[name], weight)
        else:
            fused.add_(scores[name], alpha=weight)
    return fused
