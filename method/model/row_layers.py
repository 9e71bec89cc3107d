"""Layers that take each row by itself, on a CPU: some rows at a time, in memory that the next ones use again.

Nothing is kept for the backward pass but the rows that come in: it makes the rest again, which is a small part of a
step's time and was the larger part of its memory.

Letters: N rows, I input width, D width, F hidden width, X parts of a piece.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from method.model.dropout import Draws, pass_where_kept, rectify_and_drop
from method.model.threads import in_threads

ROWS_OF_A_PIECE = 2048
_ROWS_OF_A_PART = 512  # of a piece, of which a thread takes some


def feed_forward(rows_ND: Tensor, inner: nn.Linear, outer: nn.Linear, probability: float) -> Tensor:
    """`outer(dropout(relu(inner(rows))))`, (N, D); under autocast in its precision."""
    transformed: Tensor = _FeedForward.apply(rows_ND, *inner.parameters(), *outer.parameters(), probability)
    return transformed


def normalized_linear(rows_NI: Tensor, norm: nn.LayerNorm, layer: nn.Linear, probability: float) -> Tensor:
    """`layer(dropout(norm(rows)))` of rows that need no gradient, (N, D); under autocast in its precision."""
    learnt = (*norm.parameters(), *layer.parameters())
    transformed: Tensor = _NormalizedLinear.apply(rows_NI, *learnt, norm.eps, probability)
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


class _NormalizedLinear(torch.autograd.Function):
    """The gradients of the norm's gain and bias follow from two sums over rows that are as large as the layer's weight.

    With x a row after normalisation, m what dropout multiplies it with, g the gradient of what the layer makes of it,
    and the sums P = sum g (m x)^T and Q = sum g m^T, the gradient of the weight W is P gain + Q bias, that of the gain
    the sum of W P over the layer's outputs, and that of the bias the sum of W Q. Q is the sum of all g, less those of
    the few rows that drop a channel, which takes less than half as long as the product that gives each row a gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        rows_NI: Tensor,
        gain_I: Tensor,
        bias_I: Tensor,
        weight_DI: Tensor,
        bias_D: Tensor,
        epsilon: float,
        probability: float,
    ) -> Tensor:
        if ctx.needs_input_grad[0]:
            raise ValueError("normalized_linear passes no gradient to its rows")
        kind = _precision()
        ctx.draws, ctx.epsilon = [Draws.of(probability) for _ in _pieces(len(rows_NI))], epsilon
        ctx.save_for_backward(rows_NI, gain_I, bias_I, weight_DI)
        transformed_ND = rows_NI.new_empty(len(rows_NI), len(weight_DI), dtype=kind)
        weight_DI, bias_D = weight_DI.to(kind), bias_D.to(kind)
        for piece, dropped_nI in _normalized(rows_NI, gain_I, bias_I, epsilon, ctx.draws):
            torch.addmm(bias_D, dropped_nI.to(kind), weight_DI.t(), out=transformed_ND[piece])
        return transformed_ND

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows_NI, gain_I, bias_I, weight_DI = ctx.saved_tensors
        of_transformed_ND = gradients[0]
        with_rows_DI = weight_DI.new_zeros(weight_DI.shape)  # P
        where_dropped_XID = weight_DI.new_zeros(-(-_longest(rows_NI) // _ROWS_OF_A_PART), *weight_DI.t().shape)
        pieces = _normalized(rows_NI, torch.ones_like(gain_I), torch.zeros_like(bias_I), ctx.epsilon, ctx.draws)
        for (piece, dropped_nI), draws in zip(pieces, ctx.draws, strict=True):
            of_transformed_nD = of_transformed_ND[piece]
            _add_product(with_rows_DI, of_transformed_nD.t(), dropped_nI.to(of_transformed_nD.dtype))
            _add_where_dropped(of_transformed_nD, draws, where_dropped_XID)
        of_bias_D = of_transformed_ND.float().sum(0)
        scale = ctx.draws[0].scale if ctx.draws else 1.0
        with_mask_DI = (of_bias_D - where_dropped_XID.sum(0)).t() * scale  # Q
        return (
            None,
            (weight_DI * with_rows_DI).sum(0),
            (weight_DI * with_mask_DI).sum(0),
            with_rows_DI * gain_I + with_mask_DI * bias_I,
            of_bias_D,
            None,
            None,
        )


def _normalized(
    rows_NI: Tensor, gain_I: Tensor, bias_I: Tensor, epsilon: float, draws: Sequence[Draws]
) -> Iterator[tuple[slice, Tensor]]:
    """Each piece of the rows and what dropout leaves of its layer norm, which is gone with the next."""
    from method.model import kernels  # here: to load it takes half a second, and a GPU does not need it

    dropped_MI = rows_NI.new_empty(_longest(rows_NI), rows_NI.shape[1], dtype=torch.float32)
    learnt = (gain_I.detach().numpy(), bias_I.detach().numpy(), epsilon)
    for piece, own_draws in zip(_pieces(len(rows_NI)), draws, strict=True):
        written = dropped_MI[: piece.stop - piece.start]
        read = (rows_NI[piece].float().contiguous().numpy(), *learnt, own_draws.scale, *own_draws.drawn)
        normalize = partial(_write, kernels.normalize_and_drop, read, written.numpy())
        in_threads(normalize, [1] * len(written), worth=128)
        yield piece, written


def _write(kernel: Any, read: Sequence[Any], written: Any, first: int, end: int) -> None:
    kernel(*read, first, end, written)


def _add_where_dropped(rows_nD: Tensor, draws: Draws, sums_XID: Tensor) -> None:
    """Add to each channel the rows of a piece that drop it."""
    from method.model import kernels

    if not len(draws.thresholds):
        return
    read = (rows_nD.float().contiguous().numpy(), *draws.drawn, _ROWS_OF_A_PART)
    add = partial(_write, kernels.add_where_dropped, read, sums_XID.numpy())
    in_threads(add, [1] * -(-len(rows_nD) // _ROWS_OF_A_PART), worth=1)


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
