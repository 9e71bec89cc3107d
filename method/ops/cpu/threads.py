"""Work that lets go of Python's lock, on as many threads as PyTorch uses."""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate, pairwise

import torch

_pool: ThreadPoolExecutor | None = None


def in_threads(work: Callable[[int, int], None], sizes: Sequence[int], worth: int) -> None:
    """Call `work(first, end)` for parts of consecutive items, on a thread each; returns when all are done.

    Args:
        sizes: of the items; the parts are about equally large by them.
        worth: the size for which another thread is worth calling.
    """
    global _pool
    parts = even_parts(sizes, max(1, min(torch.get_num_threads(), sum(sizes) // worth)))
    if len(parts) > 1:
        _pool = _pool or ThreadPoolExecutor()
    others = [_pool.submit(work, *part) for part in parts[1:]] if _pool is not None else []
    try:
        for part in parts[:1]:
            work(*part)
    finally:
        for other in others:
            other.result()


def even_parts(sizes: Sequence[int], count: int) -> list[tuple[int, int]]:
    """At most `count` parts of consecutive items, about equally large: the first item of each and the one behind it.

    >>> even_parts([3, 1, 2, 2], 2)
    [(0, 2), (2, 4)]
    >>> even_parts([5, 5], 8)
    [(0, 1), (1, 2)]
    >>> even_parts([], 8)
    []
    """
    ends = list(accumulate(sizes, initial=0))
    aims = [ends[-1] * part / count for part in range(count + 1)]
    return list(pairwise(sorted({_nearest(ends, aim) for aim in aims})))


def _nearest(ends: Sequence[int], aim: float) -> int:
    """The place, in ascending numbers, of the one nearest to `aim`; the lower of two."""
    above = min(bisect_left(ends, aim), len(ends) - 1)
    return min(range(max(above - 1, 0), above + 1), key=lambda place: abs(ends[place] - aim))


def _forget_threads() -> None:
    """A process that is forked has none of its parent's threads."""
    global _pool
    _pool = None


os.register_at_fork(after_in_child=_forget_threads)
