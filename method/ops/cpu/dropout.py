"""Dropout that costs as much as what it drops, with the distribution of `torch.nn.functional.dropout`.

Drawing a number for each of a hundred million values takes a CPU longer than the matrix products around it. The
distance from one dropped value to the next is geometrically distributed, so drawing the distances gives the same
distribution with a twentieth of the draws at a probability of 0.05. Nothing is kept for the backward pass but the seed
that they are drawn from. A GPU draws as fast as it writes and uses PyTorch's own.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from method.ops.cpu.arrays import as_array
from method.ops.cpu.threads import in_threads
from method.runtime import hardware

_GUIDE_PLACES = 1024


def dropout(values: Tensor, probability: float, training: bool) -> Tensor:
    """Set each value to zero with a probability, independently, and divide the others by what is left of 1."""
    if not training or probability == 0 or hardware.likes_large_kernels(values):
        return F.dropout(values, probability, training)
    dropped: Tensor = _Dropout.apply(values, Draws.of(probability))
    return dropped


def relu_dropout(values: Tensor, probability: float, training: bool) -> Tensor:
    """`dropout(relu(values))` of a fresh result (no view) that nothing else reads, and whose memory is used."""
    if not training or probability == 0:
        return F.dropout(F.relu(values), probability, training)
    dropped: Tensor = _ReluDropout.apply(values, probability)
    return dropped


class Draws(NamedTuple):
    """What a kernel draws dropped values from; with a probability of 0 it draws none.

    seed: of the streams of all items. thresholds: of 2**64, the share of distances up to each, the first of 1. guide:
    for each value of a draw's first bits, the first threshold that may lie above it. scale: of what is not dropped.
    """

    seed: int
    thresholds: np.ndarray[Any, np.dtype[np.uint64]]
    guide: np.ndarray[Any, np.dtype[np.int64]]
    scale: float

    @property
    def drawn(self) -> tuple[Any, ...]:
        """What a kernel takes to draw: `scale` is apart, since not all multiply."""
        return self.seed, self.thresholds, self.guide

    @classmethod
    def of(cls, probability: float) -> Draws:
        """Draws of a probability from 0 to below 1, from a seed that PyTorch's generator draws."""
        if probability == 0:
            return cls(0, np.empty(0, np.uint64), np.empty(0, np.int64), 1.0)
        seed = int(torch.empty((), dtype=torch.long).random_())
        return cls(seed, *_tables(probability), 1 / (1 - probability))


@cache
def _tables(probability: float) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    longest = int(np.ceil(-45 / np.log1p(-probability)))  # a longer distance has a chance of less than 2**-64
    shares = -np.expm1(np.arange(1, longest + 1) * np.log1p(-probability))
    thresholds = np.minimum(shares * 2.0**64, 2.0**64 - 2048).astype(np.uint64)
    thresholds[-1] = np.iinfo(np.uint64).max  # above every draw, but for one in 2**64
    first_draws = np.arange(_GUIDE_PLACES, dtype=np.uint64) * np.uint64(2**64 // _GUIDE_PLACES)
    return thresholds, np.searchsorted(thresholds, first_draws, side="right").astype(np.int64)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, draws: Draws) -> Tensor:
        ctx.draws = draws
        return _scaled_without(values, draws)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _scaled_without(gradients[0], ctx.draws), None


class _ReluDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, probability: float) -> Tensor:
        ctx.scale = 1 / (1 - probability)
        if hardware.likes_large_kernels(values):
            values = F.dropout(F.relu(values), probability)
        else:
            rectify_and_drop(values, Draws.of(probability))
            ctx.mark_dirty(values)
        # What is zero has no gradient, whichever of the two made it so: no mask is kept.
        ctx.save_for_backward(values)
        return values

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (values,) = ctx.saved_tensors
        if hardware.likes_large_kernels(values):
            return torch.ops.aten.threshold_backward(gradients[0], values, 0).mul_(ctx.scale), None
        passed = gradients[0].clone(memory_format=torch.contiguous_format)
        pass_where_kept(passed, values, ctx.scale)
        return passed, None


def rectify_and_drop(values: Tensor, draws: Draws) -> None:
    """On a CPU, let dropout of the relu of values take their place, in memory without gaps."""
    if values.dtype == torch.float32:
        from method.ops.cpu import kernels

        flat = as_array(values.view(-1))
        _of_all(values, lambda first, end: kernels.rectify_and_drop(flat, draws.scale, *draws.drawn, first, end))
        return
    _drop_halves(values.detach().clamp_(min=0), values.detach(), draws)


def pass_where_kept(gradient: Tensor, values: Tensor, scale: float) -> None:
    """On a CPU, let the gradient of `values`, that dropout or relu left, become that of what came in: memory in rows.

    Args:
        gradient: changed where it is, without gaps.
        scale: of what dropout kept.
    """
    if values.dtype == torch.float32:
        from method.ops.cpu import kernels

        read, changed = as_array(values.view(-1)), as_array(gradient.view(-1))
        _of_all(values, lambda first, end: kernels.pass_where_kept(read, scale, first, end, changed))
        return
    torch.ops.aten.threshold_backward.grad_input(gradient, values, 0, grad_input=gradient).mul_(scale)


def _scaled_without(values: Tensor, draws: Draws) -> Tensor:
    """What dropout leaves of values, times its scale; in new memory."""
    values = values.contiguous()
    scaled = torch.empty_like(values)
    if values.dtype == torch.float32:
        from method.ops.cpu import kernels  # here: to load it takes half a second, and a GPU does not need it

        arrays = [as_array(tensor.view(-1)) for tensor in (values, scaled)]
        _of_all(values, lambda first, end: kernels.drop(*arrays, draws.scale, *draws.drawn, first, end))
    else:
        _drop_halves(values, scaled, draws)
    return scaled


def _drop_halves(values: Tensor, written: Tensor, draws: Draws) -> None:
    from method.ops.cpu import kernels

    torch.mul(values, draws.scale, out=written)
    bits = as_array(written.view(-1))
    _of_all(values, lambda first, end: kernels.drop_halves(bits, *draws.drawn, first, end))


def _of_all(values: Tensor, work: Any) -> None:
    from method.ops.cpu.kernels import VALUES_AT_ONCE

    in_threads(work, [1] * -(-values.numel() // VALUES_AT_ONCE), worth=8)
