"""Weights of the branches in the fused score that depend on the query.

Letters: Q queries, X branches, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_SMALLEST_SUM = 1e-12


class QueryWeights(nn.Module):
    """A linear layer on a query's vectors, whose softmax multiplies the fixed weights of the branches.

    Miech et al., *Learning a Text-Video Embedding from Incomplete and Heterogeneous Data*, 2018, where weights of
    experts are the softmax of a linear function of the sentence. With fixed weights f, the weight of branch x is
    f_x exp(l_x) / sum_y f_y exp(l_y), where l is the layer applied to the unit vectors of all branches side by side.
    At first l is 0, and the weights are the fixed ones.
    """

    def __init__(self, branches: Sequence[str], width: int) -> None:
        super().__init__()
        self.branches = tuple(branches)
        self.linear = nn.Linear(width * len(self.branches), len(self.branches))

    def reset_parameters(self) -> None:
        """Begin with the fixed weights."""
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, vectors: Mapping[str, Tensor], fixed: Mapping[str, float]) -> Tensor:
        """The weights of the branches in order, (..., X), with the sum of their fixed ones.

        Args:
            vectors: branch -> query vectors (..., D) of any length.
            fixed: weights by branch; others than those of the model are not used.
        """
        unit = torch.cat([F.normalize(vectors[name].float(), dim=-1) for name in self.branches], -1)
        fixed_X = torch.tensor([fixed[name] for name in self.branches], device=unit.device)
        logits = self.linear(unit).float()
        weights = fixed_X * (logits - logits.amax(-1, keepdim=True)).exp()
        return fixed_X.sum() * weights / weights.sum(-1, keepdim=True).clamp(min=_SMALLEST_SUM)

    def by_branch(self, weights: Tensor) -> dict[str, Tensor]:
        """The weights (..., X) by branch, each (..., 1)."""
        return dict(zip(self.branches, weights.split(1, -1), strict=True))
