"""Helpers of tests of gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def loss(result: Tensor) -> Tensor:
    """A sum that gives every value of a result another gradient."""
    return (result * torch.arange(result.numel()).view_as(result).cos()).sum()


def slope(value: Callable[[], Tensor], weight: Tensor, direction: Tensor, step: float) -> Tensor:
    """Derivative of a value along a direction of a weight, by finite differences; the weight is restored."""
    around = []
    with torch.no_grad():
        for sign in (1, -1):
            weight += sign * step * direction
            around.append(value())
            weight -= sign * step * direction
    return (around[0] - around[1]) / (2 * step)
