"""Dropout that costs as much as what it drops, with the distribution of `torch.nn.functional.dropout`.

Drawing a number for each of a hundred million values takes a CPU longer than the matrix products around it. The
distance from one dropped value to the next is geometrically distributed, so drawing the distances gives the same
distribution with a twentieth of the draws at a probability of 0.05. A GPU draws as fast as it writes and uses PyTorch's
own.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from method import hardware


def dropout(values: Tensor, probability: float, training: bool) -> Tensor:
    """Set each value to zero with a probability, independently, and divide the others by what is left of 1."""
    if not training or probability == 0 or hardware.likes_large_kernels(values):
        return F.dropout(values, probability, training)
    dropped: Tensor = _Dropout.apply(values, probability)
    return dropped


def relu_dropout(values: Tensor, probability: float, training: bool) -> Tensor:
    """`dropout(relu(values))` of a fresh result (no view) that nothing else reads, and whose memory is used."""
    if not training or probability == 0 or torch.compiler.is_compiling():
        return F.dropout(F.relu(values), probability, training)
    dropped: Tensor = _ReluDropout.apply(values, probability)
    return dropped


def dropped_places(count: int, probability: float) -> Tensor:
    """The places, ascending, of the values among `count` that are dropped; each is with `probability` (in (0, 1))."""
    places = torch.empty(0, dtype=torch.long)
    last = -1
    while last < count:
        expected = (count - last) * probability
        draws = int(expected + 6 * math.sqrt(expected)) + 16  # enough in one round, but for once in a billion
        # Geometric, by the inverse of its distribution function; torch's own draws on one thread, in double precision.
        distances = (torch.rand(draws).neg_().log1p_() / math.log1p(-probability)).int() + 1
        more = distances.cumsum(0, dtype=torch.long) + last
        places = torch.cat([places, more])
        last = int(more[-1])
    return places[: int(torch.searchsorted(places, count))]


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, probability: float) -> Tensor:
        places = dropped_places(values.numel(), probability)
        ctx.save_for_backward(places)
        ctx.scale = 1 / (1 - probability)
        return _scaled_without(values, ctx.scale, places)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (places,) = ctx.saved_tensors
        return _scaled_without(gradients[0], ctx.scale, places), None


class _ReluDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, probability: float) -> Tensor:
        ctx.scale = 1 / (1 - probability)
        if hardware.likes_large_kernels(values):
            values = F.dropout(F.relu(values), probability)
        else:
            places = dropped_places(values.numel(), probability)
            values.clamp_min_(0).mul_(ctx.scale).view(-1).index_fill_(0, places, 0.0)
            ctx.mark_dirty(values)
        # What is zero has no gradient, whichever of the two made it so: no mask is kept.
        ctx.save_for_backward(values)
        return values

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (values,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(gradients[0], values, 0).mul_(ctx.scale), None


def _scaled_without(values: Tensor, scale: float, places: Tensor) -> Tensor:
    scaled = values.contiguous() * scale
    scaled.view(-1).index_fill_(0, places, 0.0)
    return scaled
