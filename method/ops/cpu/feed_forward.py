"""Layers that take each row by itself, on a CPU: some rows at a time, in memory that the next ones use again.

Nothing is kept for the backward pass but the rows that come in: it makes the rest again, which is a small part of a
step's time and was the larger part of its memory.

Letters: N rows, D width, F hidden width; n rows of a piece, M of the longest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from method.ops.cpu.dropout import Draws, pass_where_kept, rectify_and_drop

ROWS_OF_A_PIECE = 2048


def feed_forward(rows_ND: Tensor, inner: nn.Linear, outer: nn.Linear, probability: float) -> Tensor:
    """`outer(dropout(relu(inner(rows))))`, (N, D); under autocast in its precision."""
    transformed: Tensor = _FeedForward.apply(rows_ND, *inner.parameters(), *outer.parameters(), probability)
    return transformed


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows_ND: Tensor,
        inner_FD: Tensor,
        inner_F: Tensor,
        outer_DF: Tensor,
        outer_D: Tensor,
        probability: float,
    ) -> Tensor:
        kind = _precision()
        came_in = (rows_ND, inner_FD, inner_F, outer_DF, outer_D)
        ctx.kinds = [tensor.dtype for tensor in came_in]
        rows_ND, inner_FD, inner_F, outer_DF, outer_D = (tensor.to(kind) for tensor in came_in)
        ctx.save_for_backward(rows_ND, inner_FD, inner_F, outer_DF)
        ctx.draws = [Draws.of(probability) for _ in _pieces(len(rows_ND))]
        transformed_ND = rows_ND.new_empty(len(rows_ND), len(outer_DF))
        for piece, hidden_nF in _hidden(rows_ND, inner_FD, inner_F, ctx.draws):
            torch.addmm(outer_D, hidden_nF, outer_DF.t(), out=transformed_ND[piece])
        return transformed_ND

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows_ND, inner_FD, inner_F, outer_DF = ctx.saved_tensors
        of_transformed_ND = gradients[0].to(rows_ND.dtype)
        of_rows_ND, of_hidden_MF = torch.empty_like(rows_ND), rows_ND.new_empty(_longest(rows_ND), len(inner_FD))
        of_inner_FD, of_inner_F, of_outer_DF = (_sum_like(weight) for weight in (inner_FD, inner_F, outer_DF))
        for (piece, hidden_nF), draws in zip(_hidden(rows_ND, inner_FD, inner_F, ctx.draws), ctx.draws, strict=True):
            of_transformed_nD = of_transformed_ND[piece]
            _add_product(of_outer_DF, of_transformed_nD.t(), hidden_nF)
            of_hidden_nF = torch.mm(of_transformed_nD, outer_DF, out=of_hidden_MF[: len(hidden_nF)])
            pass_where_kept(of_hidden_nF, hidden_nF, draws.scale)
            _add_product(of_inner_FD, of_hidden_nF.t(), rows_ND[piece])
            of_inner_F += of_hidden_nF.sum(0)
            torch.mm(of_hidden_nF, inner_FD, out=of_rows_ND[piece])
        found = (of_rows_ND, of_inner_FD, of_inner_F, of_outer_DF, of_transformed_ND.sum(0))
        return *(gradient.to(kind) for gradient, kind in zip(found, ctx.kinds, strict=True)), None


def _hidden(
    rows_ND: Tensor, inner_FD: Tensor, inner_F: Tensor, draws: Sequence[Draws]
) -> Iterator[tuple[slice, Tensor]]:
    """Each piece of the rows and its hidden rows, which are gone with the next."""
    hidden_MF = rows_ND.new_empty(_longest(rows_ND), len(inner_FD))
    for piece, own_draws in zip(_pieces(len(rows_ND)), draws, strict=True):
        hidden_nF = hidden_MF[: piece.stop - piece.start]
        torch.addmm(inner_F, rows_ND[piece], inner_FD.t(), out=hidden_nF)
        rectify_and_drop(hidden_nF, own_draws)
        yield piece, hidden_nF


def _pieces(count: int) -> list[slice]:
    return [slice(first, min(first + ROWS_OF_A_PIECE, count)) for first in range(0, count, ROWS_OF_A_PIECE)]


def _longest(rows: Tensor) -> int:
    """The rows of the longest piece."""
    return min(len(rows), ROWS_OF_A_PIECE)


def _precision() -> torch.dtype:
    """What products are computed in."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32


def _sum_like(weight: Tensor) -> Tensor:
    """Zeros for a sum over all pieces, which half a precision would round again and again."""
    return torch.zeros_like(weight, dtype=torch.float32)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right
