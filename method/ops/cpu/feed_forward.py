"""The position-wise feed-forward in chunks of rows, whose hidden rows are used while they are in the cache.

The backward pass keeps the input and the hidden rows; a zero among these has no gradient, so that no mask is needed.

Letters: N rows, D width, F hidden width; n rows of a chunk, M of the longest.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from method.ops.cpu.dropout import DropoutSeed, relu_dropout_, relu_dropout_backward_
from method.ops.precision import cpu_product_dtype

CHUNK_ROWS = 2048


def feed_forward(rows_ND: Tensor, inner: nn.Linear, outer: nn.Linear, probability: float) -> Tensor:
    """`outer(dropout(relu(inner(rows))))`, (N, D); under autocast in its precision."""
    options = (probability, torch.is_grad_enabled())
    out_ND: Tensor = _FeedForward.apply(rows_ND, *inner.parameters(), *outer.parameters(), *options)
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
        keep_hidden: bool,
    ) -> Tensor:
        dtype = cpu_product_dtype()
        inputs = (rows_ND, inner_FD, inner_F, outer_DF, outer_D)
        ctx.dtypes = [tensor.dtype for tensor in inputs]
        rows_ND, inner_FD, inner_F, outer_DF, outer_D = (tensor.to(dtype) for tensor in inputs)
        out_ND, hidden = rows_ND.new_empty(len(rows_ND), len(outer_DF)), []
        for rows_nD, out_nD in zip(rows_ND.split(CHUNK_ROWS), out_ND.split(CHUNK_ROWS), strict=True):
            hidden_nF = torch.addmm(inner_F, rows_nD, inner_FD.t())
            relu_dropout_(hidden_nF, DropoutSeed.draw(probability))
            torch.addmm(outer_D, hidden_nF, outer_DF.t(), out=out_nD)
            if keep_hidden:
                hidden.append(hidden_nF)
        ctx.scale = 1 / (1 - probability)
        ctx.save_for_backward(rows_ND, inner_FD, outer_DF, *hidden)
        return out_ND

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows_ND, inner_FD, outer_DF, *hidden = ctx.saved_tensors
        grad_out_ND, grad_rows_ND = grads[0].to(rows_ND.dtype), torch.empty_like(rows_ND)
        grad_hidden_MF = rows_ND.new_empty(min(len(rows_ND), CHUNK_ROWS), len(inner_FD))
        # Sums over chunks are float32: in half precision they would be rounded again and again.
        grad_inner_FD, grad_outer_DF = (torch.zeros_like(w, dtype=torch.float32) for w in (inner_FD, outer_DF))
        grad_inner_F = grad_inner_FD.new_zeros(len(inner_FD))
        parts = (tensor.split(CHUNK_ROWS) for tensor in (rows_ND, grad_out_ND, grad_rows_ND))
        for hidden_nF, rows_nD, grad_out_nD, grad_rows_nD in zip(hidden, *parts, strict=True):
            add_product(grad_outer_DF, grad_out_nD.t(), hidden_nF)
            grad_hidden_nF = torch.mm(grad_out_nD, outer_DF, out=grad_hidden_MF[: len(hidden_nF)])
            relu_dropout_backward_(grad_hidden_nF, hidden_nF, ctx.scale)
            add_product(grad_inner_FD, grad_hidden_nF.t(), rows_nD)
            grad_inner_F += grad_hidden_nF.sum(0)
            torch.mm(grad_hidden_nF, inner_FD, out=grad_rows_nD)
        found = (grad_rows_ND, grad_inner_FD, grad_inner_F, grad_outer_DF, grad_out_ND.sum(0))
        return *(grad.to(dtype) for grad, dtype in zip(found, ctx.dtypes, strict=True)), None, None


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add a product to a float32 sum."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right
