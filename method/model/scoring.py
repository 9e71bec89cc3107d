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
        frames_B2Q = best_frames(torch.cat([dots_NQ / key_norms_N1, dots_NQ], 1), keys.layout)
        best_frame_BQ, _ = frames_B2Q.chunk(2, 1)
        row_BQ, raw_row_BQ = (keys.layout.starts_B[:, None] + frames_B2Q).chunk(2, 1)
    of_cosine_BQ, raw_BQ = dots_NQ.gather(0, torch.cat([row_BQ, raw_row_BQ])).chunk(2)
    key_norms_BQ = key_norms_N1[:, 0].gather(0, row_BQ.flatten()).view_as(of_cosine_BQ)
    return Similarity((of_cosine_BQ / (key_norms_BQ * query_norms_Q)).t(), raw_BQ.t(), best_frame_BQ.t())


def best_frames(scores_NQ: Tensor, layout: Layout) -> Tensor:
    """The frame of each video that scores highest, (B, Q)."""
    scores_BLQ = layout.pad(scores_NQ)
    if not layout.is_dense:
        scores_BLQ = scores_BLQ.masked_fill(~layout.real_BL[..., None], -torch.inf)
    return scores_BLQ.max(dim=1).indices


def normalized(keys: Ragged) -> Ragged:
    """Keys of length 1, whose dot products with normalised queries are cosines."""
    return keys.with_values(F.normalize(keys.values.float(), dim=-1))


def fuse(scores: Mapping[str, Tensor], fusion_weight: float) -> Tensor:
    """Scores of the branches as one: `fusion_weight` * action + the rest * object, or those of the only branch."""
    if len(scores) == 1:
        return next(iter(scores.values()))
    return torch.lerp(scores["object"], scores["action"], fusion_weight)  # one pass and no table beside the result
