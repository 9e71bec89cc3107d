"""The best wrong video of each caption, found in the blocks of scores that are ranked.

Letters: Q queries, q queries of a block, V videos.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Winners:
    """What competes for each query under one score.

    right_Q: score of its own video. other_Q: index of the best other video in the corpus, the first of equals; -1 if
    there is none. other_score_Q: the score of that, -inf if there is none. Scores are float32.
    """

    right_Q: Tensor
    other_Q: Tensor
    other_score_Q: Tensor

    @classmethod
    def empty(cls, target_Q: Tensor) -> Winners:
        """Room for as many queries as `target_Q` has, on its device."""
        scores_Q = torch.empty_like(target_Q, dtype=torch.float32)
        return cls(scores_Q, torch.empty_like(target_Q), scores_Q.clone())

    @torch.inference_mode()  # scores of a block are inference tensors, which may be changed in this mode only
    def fill(self, block: slice, scores_qV: Tensor, target_q: Tensor) -> None:
        """Store the winners of a block of queries; the scores are unchanged afterwards."""
        target_q1 = target_q[:, None]
        right_q1 = scores_qV.gather(1, target_q1)
        scores_qV.scatter_(1, target_q1, -torch.inf)  # in place: a copy would double the memory of a block
        other_score_q, other_q = scores_qV.max(1)
        scores_qV.scatter_(1, target_q1, right_q1)
        self.right_Q[block] = right_q1[:, 0]
        self.other_Q[block] = other_q.masked_fill(other_score_q == -torch.inf, -1)
        self.other_score_Q[block] = other_score_q

    def part(self, queries: slice) -> Winners:
        """Copies of some of the queries on the CPU."""
        return Winners(*(own_Q[queries].to("cpu", copy=True) for own_Q in vars(self).values()))

    @classmethod
    def join(cls, parts: Sequence[Winners]) -> Winners:
        """The queries of all parts, in order."""
        return cls(*(torch.cat(own) for own in zip(*(vars(part).values() for part in parts), strict=True)))
