"""What all kernels need: tensors as arrays, cumulative lengths, and as many threads as PyTorch uses."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

Sizes = Sequence[int] | np.ndarray[Any, Any]

_pool: ThreadPoolExecutor | None = None


def as_array(tensor: Tensor) -> np.ndarray[Any, Any]:
    """The tensor's memory as an array; 16-bit floats as int16, since NumPy has no bf16."""
    tensor = tensor.detach()
    is_16_bit = tensor.dtype in (torch.bfloat16, torch.float16)
    array: np.ndarray[Any, Any] = (tensor.view(torch.int16) if is_16_bit else tensor).numpy()
    return array


def cumulative(lengths: Sequence[int]) -> np.ndarray[Any, Any]:
    """Cumulative lengths, starting with 0: the first row of each sequence, and the end of the last."""
    return np.cumsum([0, *lengths])


def run_in_threads(kernel: Callable[[int, int], None], sizes: Sizes, min_size: int) -> None:
    """Call `kernel(start, stop)` for ranges that cover all items, one per thread, and wait for all of them.

    Args:
        sizes: of the items; ranges are balanced by their sum.
        min_size: smallest sum that is worth another thread.
    """
    global _pool
    ranges = even_ranges(sizes, max(1, min(torch.get_num_threads(), int(np.sum(sizes)) // min_size)))
    if len(ranges) > 1:
        _pool = _pool or ThreadPoolExecutor()
    futures = [_pool.submit(kernel, *range_) for range_ in ranges[1:]] if _pool is not None else []
    try:
        for range_ in ranges[:1]:
            kernel(*range_)
    finally:
        for future in futures:
            future.result()


def even_ranges(sizes: Sizes, count: int) -> list[tuple[int, int]]:
    """At most `count` ranges of consecutive items with about equal sums, as (start, stop).

    >>> even_ranges([3, 1, 2, 2], 2)
    [(0, 2), (2, 4)]
    >>> even_ranges([5, 5], 8)
    [(0, 1), (1, 2)]
    >>> even_ranges([], 8)
    []
    """
    ends = np.append(0, np.cumsum(sizes, dtype=np.int64))
    targets = ends[-1] * np.arange(count + 1) / count
    above = np.searchsorted(ends, targets).clip(max=len(ends) - 1)
    below = np.maximum(above - 1, 0)
    nearest = np.where(targets - ends[below] <= ends[above] - targets, below, above)
    return list(pairwise(np.unique(nearest).tolist()))


def _reset_pool() -> None:
    """A forked process has none of its parent's threads."""
    global _pool
    _pool = None


os.register_at_fork(after_in_child=_reset_pool)
