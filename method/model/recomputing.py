"""Results that are cheap to make again, made again for the backward pass instead of kept until then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from method import hardware

ROWS_OF_A_PART = 2048


def recomputed(function: Callable[..., Tensor], rows: Tensor, *others: Any) -> Tensor:
    """`function(rows, *others)`; on a CPU nothing of what it computes on the way is kept.

    A matrix product that comes last is not computed again, since nothing reads its result.
    For what is a small part of a step's time and a large part of its memory, a piece of a batch at a time: together it
    makes a step a sixth slower and halves its memory. A GPU keeps everything.
    """
    if hardware.likes_large_kernels(rows) or not torch.is_grad_enabled():
        return function(rows, *others)
    result: Tensor = checkpoint(function, rows, *others, use_reentrant=False)
    return result


def recomputed_in_parts(function: Callable[[Tensor], Tensor], rows_ND: Tensor) -> Tensor:
    """What a function that takes each row by itself makes of rows; on a CPU as many at a time as fit its cache."""
    if hardware.likes_large_kernels(rows_ND):
        return function(rows_ND)
    return torch.cat([recomputed(function, part) for part in rows_ND.split(ROWS_OF_A_PART)])
