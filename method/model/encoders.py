"""Frames and words of one branch become vectors of width D.

Letters: B sequences, N rows of all of them, L the longest, I input width, D width, E = 3D, H heads.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from method.data.ragged import Layout, Ragged
from method.ops.chunking import recomputed
from method.ops.cpu.dropout import dropout
from method.ops.cpu.self_attention import attend_within
from method.runtime import hardware


class SelfAttention(nn.Module):
    """One block of self-attention over each sequence: LayerNorm(x + dropout(Linear(attended))), no feed-forward."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, rows: Ragged) -> Ragged:
        """Let the rows of each sequence (N, D) attend to its real rows."""
        # One product for the three projections; separate weights, since the optimiser clips each tensor by itself.
        layers = (self.query, self.key, self.value)
        weight, bias = torch.cat([layer.weight for layer in layers]), torch.cat([layer.bias for layer in layers])
        projected_NE = F.linear(rows.values, weight, bias)
        probability = self.dropout if self.training else 0.0
        attend = _attend_padded if hardware.likes_large_kernels(rows.values) else attend_within
        attended_ND = self.output(attend(projected_NE, rows.layout, self.heads, probability))
        return rows.with_values(self._added(rows.values, attended_ND))

    def _added(self, rows_ND: Tensor, attended_ND: Tensor) -> Tensor:
        return self.norm(rows_ND + dropout(attended_ND, self.dropout, self.training))


def _attend_padded(projected_NE: Tensor, layout: Layout, heads: int, probability: float) -> Tensor:
    """`attend_within` for a GPU: padding is there only for the attention itself."""
    query, key, value = (
        part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in layout.pad(projected_NE).chunk(3, -1)
    )
    mask = None if layout.mask_BL is None else layout.mask_BL[:, None, None, :]
    attended_BHLd = F.scaled_dot_product_attention(query, key, value, mask, probability)
    return layout.unpad(attended_BHLd.transpose(1, 2).flatten(2))


class SequenceEncoder(nn.Module):
    """Projection, learned positions and one self-attention block; frames and queries alike."""

    def __init__(
        self, input_width: int, width: int, heads: int, max_length: int, input_dropout: float, dropout: float
    ) -> None:
        super().__init__()
        self.input_dropout = input_dropout
        self.dropout = dropout
        self.input_norm = nn.LayerNorm(input_width)
        self.input = nn.Linear(input_width, width)
        self.positions = nn.Embedding(max_length, width)
        self.position_norm = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads, dropout)

    def forward(self, rows: Ragged) -> Ragged:
        """Encode rows (N, I) into (N, D)."""
        projected_ND = recomputed(self._project, rows.values)
        placed_ND = self.position_norm(F.relu(projected_ND) + self.positions(rows.layout.position_N))
        return self.attention(rows.with_values(dropout(placed_ND, self.dropout, self.training)))

    def _project(self, rows_NI: Tensor) -> Tensor:
        return self.input(dropout(self.input_norm(rows_NI), self.input_dropout, self.training))


class QueryPooling(nn.Module):
    """A softmax over the words of each query, from one learned vector, and the weighted sum of its words."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Linear(width, 1, bias=False)

    def forward(self, words: Ragged) -> Tensor:
        """Pool words (N, D) into one vector a query, (B, D)."""
        layout = words.layout
        logits_BL = layout.pad(self.weight(words.values)).squeeze(-1)
        weights_BL = logits_BL.masked_fill(~layout.real_BL, -torch.inf).softmax(-1)
        return torch.einsum("bl,bld->bd", weights_BL, layout.pad(words.values))
