"""A linear layer of dropout of a LayerNorm, in chunks of rows, of features that need no gradient.

Nothing is stored for the backward pass but the features, and no gradient of the normalized rows is computed. With x a
normalized row, m its dropout mask times the scale, and g the gradient of the output, two sums over rows are enough:

    P = sum g (m x)^T        grad_weight = P gain + Q bias
    Q = sum g m^T            grad_gain = sum_D weight P,  grad_bias = sum_D weight Q

Q is the sum of all g less those of the few rows that drop a channel: less than half the time of a matrix product.

Letters: N rows, I input width, D width; n rows of a chunk, M of the longest; X items of a chunk, each for one thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from method.ops.cpu import kernels
from method.ops.cpu.dropout import DropoutSeed
from method.ops.cpu.feed_forward import add_product
from method.ops.cpu.threads import as_array, run_in_threads
from method.ops.precision import cpu_product_dtype

CHUNK_ROWS = 2048
ROWS_PER_ITEM = 512


def normalized_linear(rows_NI: Tensor, norm: nn.LayerNorm, layer: nn.Linear, probability: float) -> Tensor:
    """`layer(dropout(norm(rows)))`, (N, D); under autocast in its precision."""
    out_ND: Tensor = _NormalizedLinear.apply(rows_NI, *norm.parameters(), *layer.parameters(), norm.eps, probability)
    return out_ND


class _NormalizedLinear(torch.autograd.Function):
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
        dtype = cpu_product_dtype()
        ctx.epsilon, ctx.seeds = epsilon, [DropoutSeed.draw(probability) for _ in rows_NI.split(CHUNK_ROWS)]
        ctx.save_for_backward(rows_NI, gain_I, bias_I, weight_DI)
        out_ND = rows_NI.new_empty(len(rows_NI), len(weight_DI), dtype=dtype)
        weight_DI, bias_D = weight_DI.to(dtype), bias_D.to(dtype)
        chunks = _normalized(rows_NI, gain_I, bias_I, epsilon, ctx.seeds)
        for out_nD, normal_nI in zip(out_ND.split(CHUNK_ROWS), chunks, strict=True):
            torch.addmm(bias_D, normal_nI.to(dtype), weight_DI.t(), out=out_nD)
        return out_ND

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows_NI, gain_I, bias_I, weight_DI = ctx.saved_tensors
        items = -(-min(len(rows_NI), CHUNK_ROWS) // ROWS_PER_ITEM)
        p_DI, where_dropped_XID = torch.zeros_like(weight_DI), weight_DI.new_zeros(items, *weight_DI.t().shape)
        chunks = _normalized(rows_NI, torch.ones_like(gain_I), torch.zeros_like(bias_I), ctx.epsilon, ctx.seeds)
        for grad_nD, normal_nI, seed in zip(grads[0].split(CHUNK_ROWS), chunks, ctx.seeds, strict=True):
            add_product(p_DI, grad_nD.t(), normal_nI.to(grad_nD.dtype))
            _add_where_dropped(grad_nD, seed, where_dropped_XID)
        grad_bias_D = grads[0].float().sum(0)
        q_DI = (grad_bias_D - where_dropped_XID.sum(0)).t() * ctx.seeds[0].scale
        grad_weight_DI = p_DI * gain_I + q_DI * bias_I
        return None, (weight_DI * p_DI).sum(0), (weight_DI * q_DI).sum(0), grad_weight_DI, grad_bias_D, None, None


def _normalized(
    rows_NI: Tensor, gain_I: Tensor, bias_I: Tensor, epsilon: float, seeds: Sequence[DropoutSeed]
) -> Iterator[Tensor]:
    """Dropout of the LayerNorm of each chunk, in memory that the next chunk reuses."""
    normal_MI = rows_NI.new_empty(min(len(rows_NI), CHUNK_ROWS), rows_NI.shape[1], dtype=torch.float32)
    for rows_nI, seed in zip(rows_NI.split(CHUNK_ROWS), seeds, strict=True):
        normal_nI = normal_MI[: len(rows_nI)]
        read = [as_array(tensor) for tensor in (rows_nI.float().contiguous(), gain_I, bias_I)]
        arguments, out = (*read, epsilon, seed.scale, *seed.mask), as_array(normal_nI)
        _for_items(kernels.layer_norm_dropout, arguments, out, count=len(rows_nI), min_size=128)
        yield normal_nI


def _add_where_dropped(rows_nD: Tensor, seed: DropoutSeed, sums_XID: Tensor) -> None:
    """Add to each channel the rows of a chunk that drop it."""
    if len(seed.thresholds):
        arguments = (as_array(rows_nD.float().contiguous()), *seed.mask, ROWS_PER_ITEM)
        count = -(-len(rows_nD) // ROWS_PER_ITEM)
        _for_items(kernels.add_where_dropped, arguments, as_array(sums_XID), count=count, min_size=1)


def _for_items(kernel: Any, arguments: Sequence[Any], out: Any, *, count: int, min_size: int) -> None:
    run_in_threads(lambda start, stop: kernel(*arguments, start, stop, out), [1] * count, min_size=min_size)
