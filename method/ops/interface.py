"""What a backend provides, and the arguments of its operations.

Letters: N rows or query frames, I input width, J sampling points of each, G channel groups, K context frames,
D width, E = 3D, Q queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from torch import Tensor, nn

from method.data.ragged import Layout


class MLP(nn.Module):
    """Two square linear layers with ReLU and dropout between them; operations apply the layers, often in parts."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width)


class SamplingPoints(NamedTuple):
    """Where each query frame samples the context frames of its video.

    index_NJG2: int32, indices of the two context frames, among all K, that a channel group of a point interpolates.
    weight_NJG2: their interpolation weights.
    lengths, context_lengths: query and context frames of each video.
    """

    index_NJG2: Tensor
    weight_NJG2: Tensor
    lengths: Sequence[int]
    context_lengths: Sequence[int]


class Backend(Protocol):
    """One implementation of the operations; `method.ops` documents them.

    CHUNK_ROWS: rows of a chunk of videos that fits the cache; None for no chunks and no activation checkpointing.
    """

    CHUNK_ROWS: int | None

    def dropout(self, values: Tensor, probability: float) -> Tensor: ...  # noqa: D102

    def relu_dropout(self, values: Tensor, probability: float) -> Tensor: ...  # noqa: D102

    def normalized_linear(  # noqa: D102
        self, rows_NI: Tensor, norm: nn.LayerNorm, layer: nn.Linear, probability: float
    ) -> Tensor: ...

    def self_attention(  # noqa: D102
        self, projected_NE: Tensor, layout: Layout, heads: int, probability: float, sigma: float | None
    ) -> Tensor: ...

    def feed_forward(self, rows_ND: Tensor, inner: nn.Linear, outer: nn.Linear, probability: float) -> Tensor: ...  # noqa: D102

    def deformable_attention(  # noqa: D102
        self,
        query_ND: Tensor,
        context_KD: Tensor,
        points: SamplingPoints,
        to_key: MLP,
        to_value: MLP,
        heads: int,
        scale: Tensor,
        probability: float,
    ) -> Tensor: ...

    def best_dots(  # noqa: D102
        self, frames_ND: Tensor, norms_N: Tensor, queries_QD: Tensor, layout: Layout
    ) -> tuple[Tensor, Tensor]: ...

    def highest_dots(  # noqa: D102
        self, rows_ND: Tensor, starts_B: Tensor, lengths_B: Tensor, queries_QD: Tensor
    ) -> Tensor: ...
