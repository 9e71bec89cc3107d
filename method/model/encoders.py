"""Frames or tokens of one branch become vectors of width D.

Letters: B sequences, N rows of all of them, L the longest, I input width, D width, E = 3D.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from method import ops
from method.data.ragged import Ragged
from method.model.architecture import Architecture


class SelfAttention(nn.Module):
    """One block of self-attention over each sequence: LayerNorm(x + dropout(Linear(attended))), no feed-forward."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        width, self.heads, self.dropout = architecture.hidden_size, architecture.heads, architecture.dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, rows: Ragged) -> Ragged:
        """Attend from all rows (N, D) of each sequence to its valid rows."""
        # One product for three projections; their weights are separate because the optimizer clips each tensor.
        layers = (self.query, self.key, self.value)
        weight, bias = torch.cat([layer.weight for layer in layers]), torch.cat([layer.bias for layer in layers])
        projected_NE = F.linear(rows.values, weight, bias)
        probability = self.dropout if self.training else 0.0
        attended_ND = self.output(ops.self_attention(projected_NE, rows.layout, self.heads, probability))
        return rows.with_values(self.norm(rows.values + ops.dropout(attended_ND, self.dropout, self.training)))


class SequenceEncoder(nn.Module):
    """Input projection, learned position embedding and one self-attention block; for frames and tokens alike."""

    def __init__(self, architecture: Architecture, *, input_width: int, max_length: int) -> None:
        super().__init__()
        width, self.dropout = architecture.hidden_size, architecture.dropout
        self.input_dropout = architecture.input_dropout
        self.input_norm = nn.LayerNorm(input_width)
        self.input = nn.Linear(input_width, width)
        self.positions = nn.Embedding(max_length, width)
        self.position_norm = nn.LayerNorm(width)
        self.attention = SelfAttention(architecture)

    def forward(self, rows: Ragged) -> Ragged:
        """Encode rows (N, I) into (N, D)."""
        probability = self.input_dropout if self.training else 0.0
        projected_ND = ops.normalized_linear(rows.values, self.input_norm, self.input, probability)
        embedded_ND = ops.map_videos(self._add_positions, rows.with_values(projected_ND))
        return self.attention(rows.with_values(embedded_ND))

    def _add_positions(self, projected: Ragged) -> Tensor:
        """Position embeddings added to the projected rows, (N, D)."""
        return ops.checkpointed(self._embed, projected.values, projected.layout.position_N)

    def _embed(self, projected_ND: Tensor, position_N: Tensor) -> Tensor:
        embedded_ND = self.position_norm(F.relu(projected_ND) + self.positions(position_N))
        return ops.dropout(embedded_ND, self.dropout, self.training)


class QueryPooling(nn.Module):
    """Attention pooling of each query's tokens, with one learned vector."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Linear(width, 1, bias=False)

    def forward(self, tokens: Ragged) -> Tensor:
        """Pool tokens (N, D) into one vector per query, (B, D)."""
        layout = tokens.layout
        logits_BL = layout.pad(self.weight(tokens.values)).squeeze(-1)
        weights_BL = logits_BL.masked_fill(~layout.valid_BL, -torch.inf).softmax(-1)
        return torch.einsum("bl,bld->bd", weights_BL, layout.pad(tokens.values))
