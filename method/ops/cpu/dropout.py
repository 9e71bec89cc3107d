"""Dropout whose cost is proportional to what it drops, with the distribution of `torch.nn.functional.dropout`.

On a CPU, a random number for each of a hundred million values takes longer than the matrix products around it. The gaps
between dropped values are geometrically distributed; sampling the gaps needs a twentieth of the random numbers at a
probability of 0.05. The backward pass keeps only the seed and samples the same gaps again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from method.ops.cpu import kernels
from method.ops.cpu.threads import as_array, run_in_threads

_GUIDE_SIZE = 1024


def dropout(values: Tensor, probability: float) -> Tensor:
    """Zero each value with a probability, independently, and divide the others by 1 - probability."""
    dropped: Tensor = _Dropout.apply(values, DropoutSeed.draw(probability))
    return dropped


def relu_dropout(values: Tensor, probability: float) -> Tensor:
    """`dropout(relu(values))`, in place."""
    dropped: Tensor = _ReluDropout.apply(values, DropoutSeed.draw(probability))
    return dropped


class DropoutSeed(NamedTuple):
    """A dropout mask, as kernels generate it. With a probability of 0, nothing is dropped.

    seed: of the streams of all items. thresholds: the distribution function of the gaps, times 2**64. guide: by the
    leading bits of a random number, the first threshold that may exceed it. scale: of the values that are kept.
    """

    seed: int
    thresholds: np.ndarray[Any, np.dtype[np.uint64]]
    guide: np.ndarray[Any, np.dtype[np.int64]]
    scale: float

    @property
    def mask(self) -> tuple[Any, ...]:
        """What kernels need besides `scale`."""
        return self.seed, self.thresholds, self.guide

    @classmethod
    def draw(cls, probability: float) -> DropoutSeed:
        """A new mask from PyTorch's generator, for a probability in [0, 1)."""
        if probability == 0:
            return cls(0, np.empty(0, np.uint64), np.empty(0, np.int64), 1.0)
        seed = int(torch.empty((), dtype=torch.long).random_())
        return cls(seed, *_tables(probability), 1 / (1 - probability))


@cache
def _tables(probability: float) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    longest = int(np.ceil(-45 / np.log1p(-probability)))  # a longer gap has a probability below 2**-64
    distribution = -np.expm1(np.arange(1, longest + 1) * np.log1p(-probability))
    thresholds = np.minimum(distribution * 2.0**64, 2.0**64 - 2048).astype(np.uint64)
    thresholds[-1] = np.iinfo(np.uint64).max  # ends the search
    leading = np.arange(_GUIDE_SIZE, dtype=np.uint64) * np.uint64(2**64 // _GUIDE_SIZE)
    return thresholds, np.searchsorted(thresholds, leading, side="right").astype(np.int64)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, seed: DropoutSeed) -> Tensor:
        ctx.seed = seed
        return _dropout(values, seed)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _dropout(grads[0], ctx.seed), None


class _ReluDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, seed: DropoutSeed) -> Tensor:
        ctx.scale = seed.scale
        relu_dropout_(values, seed)
        ctx.mark_dirty(values)
        ctx.save_for_backward(values)
        return values

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (output,) = ctx.saved_tensors
        grad = grads[0].clone(memory_format=torch.contiguous_format)
        relu_dropout_backward_(grad, output, ctx.scale)
        return grad, None


def relu_dropout_(values: Tensor, seed: DropoutSeed) -> None:
    """Replace contiguous values by dropout of their ReLU."""
    if values.dtype == torch.float32:
        flat = as_array(values.view(-1))
        _for_blocks(values, lambda start, stop: kernels.relu_dropout(flat, seed.scale, *seed.mask, start, stop))
        return
    _dropout_16_bit(values.detach().clamp_(min=0), values.detach(), seed)


def relu_dropout_backward_(grad: Tensor, output: Tensor, scale: float) -> None:
    """Replace the contiguous gradient of `relu_dropout_`'s output by that of its input.

    A zero has no gradient, whether ReLU or dropout made it, so no mask is needed.
    """
    if output.dtype == torch.float32:
        flat, flat_grad = as_array(output.view(-1)), as_array(grad.view(-1))
        _for_blocks(output, lambda start, stop: kernels.relu_dropout_backward(flat, scale, start, stop, flat_grad))
        return
    torch.ops.aten.threshold_backward.grad_input(grad, output, 0, grad_input=grad).mul_(scale)


def _dropout(values: Tensor, seed: DropoutSeed) -> Tensor:
    values = values.contiguous()
    out = torch.empty_like(values)
    if values.dtype == torch.float32:
        arrays = [as_array(tensor.view(-1)) for tensor in (values, out)]
        _for_blocks(values, lambda start, stop: kernels.dropout(*arrays, seed.scale, *seed.mask, start, stop))
    else:
        _dropout_16_bit(values, out, seed)
    return out


def _dropout_16_bit(values: Tensor, out: Tensor, seed: DropoutSeed) -> None:
    torch.mul(values, seed.scale, out=out)
    bits = as_array(out.view(-1))
    _for_blocks(values, lambda start, stop: kernels.zero_dropped_16_bit(bits, *seed.mask, start, stop))


def _for_blocks(values: Tensor, kernel: Callable[[int, int], None]) -> None:
    run_in_threads(kernel, [1] * -(-values.numel() // kernels.BLOCK_VALUES), min_size=8)
