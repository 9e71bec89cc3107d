"""Results that are cheap to make again, made again for the backward pass instead of kept until then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from method.runtime import hardware

Result = TypeVar("Result", Tensor, tuple[Tensor, Tensor])


def recomputed(function: Callable[..., Result], rows: Tensor, *others: Any) -> Result:
    """`function(rows, *others)`; on a CPU nothing of what it computes on the way is kept.

    A matrix product that comes last is not computed again, since nothing reads its result.
    For what is a small part of a step's time and a large part of its memory. A GPU keeps everything.
    """
    if hardware.likes_large_kernels(rows) or not torch.is_grad_enabled():
        return function(rows, *others)
    result: Result = checkpoint(function, rows, *others, use_reentrant=False)
    return result
