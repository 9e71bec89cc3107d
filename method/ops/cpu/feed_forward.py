"""The position-wise feed-forward in chunks of rows, whose hidden rows fit the cache and are never stored.

The backward pass keeps only the input and computes the hidden rows again: a small part of a step's time, and otherwise
the larger part of its memory.

Letters: N rows, D width, F hidden width; n rows of a chunk, M of the longest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from method.ops.cpu.dropout import DropoutSeed, relu_dropout_, relu_dropout_backward_

CHUNK_ROWS = 2048


def feed_forward(rows_ND: Tensor, inner: nn.Linear, outer: nn.Linear, probability: float) -> Tensor:
    """`outer(dropout(relu(inner(rows))))`, (N, D); under autocast in its precision."""
    out_ND: Tensor = _FeedForward.apply(rows_ND, *inner.parameters(), *outer.parameters(), probability)
    return out_ND


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
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
        inputs = (rows_ND, inner_FD, inner_F, outer_DF, outer_D)
        ctx.dtypes = [tensor.dtype for tensor in inputs]
        rows_ND, inner_FD, inner_F, outer_DF, outer_D = (tensor.to(dtype) for tensor in inputs)
        ctx.save_for_backward(rows_ND, inner_FD, inner_F, outer_DF)
        ctx.seeds = [DropoutSeed.draw(probability) for _ in _chunks(len(rows_ND))]
        out_ND = rows_ND.new_empty(len(rows_ND), len(outer_DF))
        for chunk, hidden_nF in _hidden(rows_ND, inner_FD, inner_F, ctx.seeds):
            torch.addmm(outer_D, hidden_nF, outer_DF.t(), out=out_ND[chunk])
        return out_ND

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows_ND, inner_FD, inner_F, outer_DF = ctx.saved_tensors
        grad_out_ND = grads[0].to(rows_ND.dtype)
        grad_rows_ND, grad_hidden_MF = torch.empty_like(rows_ND), rows_ND.new_empty(_longest(rows_ND), len(inner_FD))
        # Sums over chunks are float32: in half precision they would be rounded again and again.
        grad_inner_FD, grad_inner_F, grad_outer_DF = (
            torch.zeros_like(weight, dtype=torch.float32) for weight in (inner_FD, inner_F, outer_DF)
        )
        for (chunk, hidden_nF), seed in zip(_hidden(rows_ND, inner_FD, inner_F, ctx.seeds), ctx.seeds, strict=True):
            grad_out_nD = grad_out_ND[chunk]
            _add_product(grad_outer_DF, grad_out_nD.t(), hidden_nF)
            grad_hidden_nF = torch.mm(grad_out_nD, outer_DF, out=grad_hidden_MF[: len(hidden_nF)])
            relu_dropout_backward_(grad_hidden_nF, hidden_nF, seed.scale)
            _add_product(grad_inner_FD, grad_hidden_nF.t(), rows_ND[chunk])
            grad_inner_F += grad_hidden_nF.sum(0)
            torch.mm(grad_hidden_nF, inner_FD, out=grad_rows_ND[chunk])
        found = (grad_rows_ND, grad_inner_FD, grad_inner_F, grad_outer_DF, grad_out_ND.sum(0))
        return *(grad.to(dtype) for grad, dtype in zip(found, ctx.dtypes, strict=True)), None


def _hidden(
    rows_ND: Tensor, inner_FD: Tensor, inner_F: Tensor, seeds: Sequence[DropoutSeed]
) -> Iterator[tuple[slice, Tensor]]:
    """Each chunk and its hidden rows, in memory that the next chunk reuses."""
    hidden_MF = rows_ND.new_empty(_longest(rows_ND), len(inner_FD))
    for chunk, seed in zip(_chunks(len(rows_ND)), seeds, strict=True):
        hidden_nF = hidden_MF[: chunk.stop - chunk.start]
        torch.addmm(inner_F, rows_ND[chunk], inner_FD.t(), out=hidden_nF)
        relu_dropout_(hidden_nF, seed)
        yield chunk, hidden_nF


def _chunks(count: int) -> list[slice]:
    return [slice(start, min(start + CHUNK_ROWS, count)) for start in range(0, count, CHUNK_ROWS)]


def _longest(rows: Tensor) -> int:
    """M."""
    return min(len(rows), CHUNK_ROWS)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right
