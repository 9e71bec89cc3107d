"""Scores of queries against videos: a video scores as well as its best frame.

Letters: Q queries, B videos, N real frames of all of them, L the longest video, D width.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from method.data.ragged import Layout, Ragged


@dataclass(frozen=True)
class Similarity:
    """What the losses need of one branch.

    cosine_QB: largest cosine of query and frame key in each video.
    raw_QB: the same with unnormalised dot products.
    best_frame_QB: the frame, in its video, that gives the cosine.
    """

    cosine_QB: Tensor
    raw_QB: Tensor
    best_frame_QB: Tensor


def similarity(keys: Ragged, queries_QD: Tensor) -> Similarity:
    """Score every query against every video by its best frame.

    >>> keys = Ragged.of([torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, -3.0]])])
    >>> scores = similarity(keys, torch.tensor([[0.0, 4.0]]))
    >>> scores.cosine_QB.tolist(), scores.raw_QB.tolist(), scores.best_frame_QB.tolist()
    ([[1.0, -1.0]], [[4.0, -12.0]], [[1, 0]])
    """
    dots_NQ = (keys.values @ queries_QD.t()).float()
    key_norms_N1 = keys.values.float().norm(dim=-1, keepdim=True).clamp(min=1e-12)
    query_norms_Q = queries_QD.float().norm(dim=-1).clamp(min=1e-12)
    with torch.no_grad():  # the frames are found first, so that gradients are kept of their scores alone
        best_frame_BQ, raw_best_BQ = best_frames(dots_NQ, key_norms_N1, keys.layout)
        row_BQ, raw_row_BQ = (keys.layout.starts_B[:, None] + frame_BQ for frame_BQ in (best_frame_BQ, raw_best_BQ))
    of_cosine_BQ, raw_BQ = dots_NQ.gather(0, torch.cat([row_BQ, raw_row_BQ])).chunk(2)
    key_norms_BQ = key_norms_N1[:, 0].gather(0, row_BQ.flatten()).view_as(of_cosine_BQ)
    return Similarity((of_cosine_BQ / (key_norms_BQ * query_norms_Q)).t(), raw_BQ.t(), best_frame_BQ.t())


def best_frames(dots_NQ: Tensor, key_norms_N1: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """The frame of each video with the largest dot product by its key's length, and with the largest one, (B, Q)."""
    scores_BLX = layout.pad(torch.cat([dots_NQ / key_norms_N1, dots_NQ], 1))
    if not layout.is_dense:
        scores_BLX = scores_BLX.masked_fill(~layout.real_BL[..., None], -torch.inf)
    of_cosine_BQ, of_dot_BQ = scores_BLX.max(dim=1).indices.chunk(2, 1)
    return of_cosine_BQ, of_dot_BQ


def normalized(keys: Ragged) -> Ragged:
    """Keys of length 1, whose dot products with normalised queries are cosines."""
    return keys.with_values(F.normalize(keys.values.float(), dim=-1))


def fuse(scores: Mapping[str, Tensor], fusion_weight: float) -> Tensor:
    """Scores of the branches as one: `fusion_weight` * action + the rest * object, or those of the only branch."""
    if len(scores) == 1:
        return next(iter(scores.values()))
    return torch.lerp(scores["object"], scores["action"], fusion_weight)  # one pass and no table beside the result
