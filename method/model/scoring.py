"""Scores of queries against videos: a video scores as well as its best frame.

Letters: Q queries, B videos, N valid frames of all of them, L the longest video, D width; X = 2Q.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from method.data.ragged import Layout, Ragged


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
    dots_NQ = (frames.values @ queries_QD.t()).float()
    frame_norms_N1 = frames.values.float().norm(dim=-1, keepdim=True).clamp(min=1e-12)
    query_norms_Q = queries_QD.float().norm(dim=-1).clamp(min=1e-12)
    with torch.no_grad():  # the best frames come first, so that only their scores are stored for the backward pass
        best_BQ, raw_best_BQ = best_frames(dots_NQ, frame_norms_N1, frames.layout)
        row_BQ, raw_row_BQ = (frames.layout.starts_B[:, None] + frame_BQ for frame_BQ in (best_BQ, raw_best_BQ))
    best_dots_BQ, raw_BQ = dots_NQ.gather(0, torch.cat([row_BQ, raw_row_BQ])).chunk(2)
    best_norms_BQ = frame_norms_N1[:, 0].gather(0, row_BQ.flatten()).view_as(best_dots_BQ)
    return Similarity((best_dots_BQ / (best_norms_BQ * query_norms_Q)).t(), raw_BQ.t(), best_BQ.t())


def best_frames(dots_NQ: Tensor, frame_norms_N1: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """The frame of each video with the largest cosine, and the one with the largest dot product, (B, Q)."""
    scores_BLX = layout.pad(torch.cat([dots_NQ / frame_norms_N1, dots_NQ], 1), -torch.inf)
    if layout.valid != layout.lengths:
        scores_BLX = scores_BLX.masked_fill(~layout.valid_BL[..., None], -torch.inf)
    best_BQ, raw_best_BQ = scores_BLX.max(dim=1).indices.chunk(2, 1)
    return best_BQ, raw_best_BQ


def normalized(frames: Ragged) -> Ragged:
    """Unit-length frame embeddings, whose dot products with normalized queries are cosines."""
    return frames.with_values(F.normalize(frames.values.float(), dim=-1))


def fuse(scores: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The sum of all branches' scores by their weights, which sum to 1; of one branch its scores themselves.

    >>> fuse({"action": torch.ones(2), "object": torch.zeros(2)}, {"action": 0.25, "object": 0.75}).tolist()
    [0.25, 0.25]
    """
    first, *others = scores
    if len(others) < 2:  # one pass, no temporary
        return torch.lerp(scores[others[0]], scores[first], weights[first]) if others else scores[first]
    fused = scores[first] * weights[first]
    for name in others:
        fused.add_(scores[name], alpha=weights[name])
    return fused
