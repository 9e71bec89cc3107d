"""Rows and the learned embedding of their places, normalised, on a CPU: each row is read and written once.

Nothing is kept for the backward pass but the rows that come in.

Letters: N rows, D width, L places that have an embedding, X parts of the rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from method.model.arrays import as_array, readable
from method.model.dropout import Draws
from method.model.threads import in_threads

_ROWS_OF_A_PART = 1024  # of which a thread takes some


def placed(rows_ND: Tensor, place_N: Tensor, embedding: nn.Embedding, norm: nn.LayerNorm, probability: float) -> Tensor:
    """`dropout(norm(relu(rows) + embedding(place)))`, (N, D), in single precision.

    Raises:
        IndexError: when a place has no embedding.
    """
    if len(place_N) and int(place_N.max()) >= embedding.num_embeddings:
        raise IndexError(f"place {int(place_N.max())} of a row, of {embedding.num_embeddings} that have an embedding")
    learnt = (embedding.weight, *norm.parameters())
    placed_ND: Tensor = _Placed.apply(rows_ND, place_N, *learnt, norm.eps, Draws.of(probability))
    return placed_ND


class _Placed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows_ND: Tensor,
        place_N: Tensor,
        table_LD: Tensor,
        gain_D: Tensor,
        bias_D: Tensor,
        epsilon: float,
        draws: Draws,
    ) -> Tensor:
        from method.model import kernels  # here: to load it takes half a second, and a GPU does not need it

        ctx.save_for_backward(rows_ND, place_N, table_LD, gain_D)
        ctx.epsilon, ctx.draws = epsilon, draws
        read = [as_array(tensor) for tensor in (readable(rows_ND), table_LD, place_N, gain_D, bias_D)]
        placed_ND = torch.empty_like(rows_ND, dtype=torch.float32)
        dropped, written = (epsilon, draws.scale, draws.drawn), as_array(placed_ND)
        in_threads(
            lambda first, end: kernels.place_and_normalize(*read, *dropped, first, end, written),
            [1] * len(rows_ND),
            worth=128,
        )
        return placed_ND

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        from method.model import kernels

        rows_ND, place_N, table_LD, gain_D = ctx.saved_tensors
        read_ND = readable(rows_ND)
        of_rows_ND = torch.empty_like(read_ND)
        parts = -(-len(rows_ND) // _ROWS_OF_A_PART)
        found = [gain_D.new_empty(parts, *shape) for shape in (table_LD.shape, (2, len(gain_D)))]
        read = [as_array(tensor) for tensor in (read_ND, table_LD, place_N, gradients[0].contiguous(), gain_D)]
        written = (as_array(of_rows_ND), tuple(as_array(tensor) for tensor in found))
        dropped = (ctx.epsilon, ctx.draws.scale, ctx.draws.drawn, _ROWS_OF_A_PART)
        in_threads(
            lambda first, end: kernels.pass_through_place(*read, *dropped, first, end, *written),
            [1] * parts,
            worth=1,
        )
        of_table_LD, of_learnt_2D = (tensor.sum(0) for tensor in found)
        return of_rows_ND.to(rows_ND.dtype), None, of_table_LD, *of_learnt_2D, None, None
