"""Frames or tokens of one branch become vectors of width D.

Letters: B sequences, N rows of all of them, X with registers, L the longest, I input width, D width, E = 3D.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from method import ops
from method.data.ragged import Layout, Ragged
from method.model.architecture import Architecture

SIGMAS = (None, 1 / 18, 1 / 9, 5 / 9)


class SelfAttention(nn.Module):
    """One block of self-attention over each sequence: LayerNorm(x + dropout(Linear(attended))), no feed-forward.

    sigma: standard deviation of a Gaussian window, see `GaussianAttention`; None: no window.
    """

    def __init__(self, architecture: Architecture, sigma: float | None = None) -> None:
        super().__init__()
        self.sigma = sigma
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
        attended_ND = self.output(ops.self_attention(projected_NE, rows.layout, self.heads, probability, self.sigma))
        return rows.with_values(self.norm(rows.values + ops.dropout(attended_ND, self.dropout, self.training)))


class GaussianAttention(nn.Module):
    """The mean of four blocks of self-attention, three of them under Gaussian windows of different widths.

    Wang et al., *GMMFormer: Gaussian-Mixture-Model Based Transformer for Efficient Partially Relevant Video Retrieval*,
    AAAI 2024. The logit q_i . k_j / sqrt(d) of frames i and j, of the n of a video, is multiplied by
    exp(-((i - j) / n)^2 / (2 sigma^2)) before the softmax; sigma is 1/18, 1/9 or 5/9, and one block has no window. Each
    block has weights of its own, and the outputs of the blocks, LayerNorm included, are averaged.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([SelfAttention(architecture, sigma) for sigma in SIGMAS])

    def forward(self, rows: Ragged) -> Ragged:
        """Attend from all rows (N, D) of each sequence to its valid rows."""
        first_ND, *others = (block(rows).values for block in self.blocks)
        return rows.with_values(sum(others, first_ND) / len(SIGMAS))


class RegisterAttention(SelfAttention):
    """Self-attention to learned rows, too, which are read and written as frames are, and then dropped.

    Darcet et al., *Vision Transformers Need Registers*, ICLR 2024. They have no position, and are the same for all
    videos.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__(architecture)
        self.registers = nn.Embedding(architecture.registers, architecture.hidden_size)

    def forward(self, rows: Ragged) -> Ragged:
        """Attend from all rows (N, D) of each sequence to its valid rows and the registers."""
        layout, count = rows.layout, self.registers.num_embeddings
        lengths, valid = ([size + count for size in sizes] for sizes in (layout.lengths, layout.valid))
        longer = Layout.of(lengths, valid, layout.longest, layout.device)
        source_X = torch.where(longer.position_N < count, longer.position_N, 0)
        index_N = longer.starts_B[layout.owner_N] + count + layout.position_N
        source_X = source_X.index_copy(0, index_N, count + torch.arange(layout.rows, device=layout.device))
        values_XD = torch.cat([self.registers.weight.to(rows.values.dtype), rows.values]).index_select(0, source_X)
        return rows.with_values(super().forward(Ragged(values_XD, longer)).values.index_select(0, index_N))


def frame_attention(architecture: Architecture) -> nn.Module:
    """The self-attention of a frame encoder."""
    if architecture.attention == "gaussian":
        return GaussianAttention(architecture)
    return RegisterAttention(architecture) if architecture.registers else SelfAttention(architecture)


class SequenceEncoder(nn.Module):
    """Input projection, learned position embedding and self-attention; for frames and tokens alike."""

    def __init__(self, architecture: Architecture, attention: nn.Module, *, input_width: int, max_length: int) -> None:
        super().__init__()
        width, self.dropout = architecture.hidden_size, architecture.dropout
        self.input_dropout = architecture.input_dropout
        self.input_norm = nn.LayerNorm(input_width)
        self.input = nn.Linear(input_width, width)
        self.positions = nn.Embedding(max_length, width)
        self.position_norm = nn.LayerNorm(width)
        self.attention = attention

    def forward(self, rows: Ragged) -> Ragged:
        """Encode rows (N, I) into (N, D)."""
        probability = self.input_dropout if self.training else 0.0
        projected_ND = ops.normalized_linear(rows.values, self.input_norm, self.input, probability)
        embedded_ND = ops.map_videos(self._add_positions, rows.with_values(projected_ND))
        encoded: Ragged = self.attention(rows.with_values(embedded_ND))
        return encoded

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
        layout = tokens.layout.rounded
        # Sums rather than products with a vector, which BLAS libraries round differently for other rows beside it.
        logits_BL = layout.pad((tokens.values * self.weight.weight[0]).sum(-1))
        weights_BL = logits_BL.masked_fill(~layout.valid_BL, -torch.inf).softmax(-1)
        return (weights_BL[..., None] * layout.pad(tokens.values)).sum(1)
