"""Work divided by videos, and activation checkpointing: less memory for a little more arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from method.data.ragged import Ragged

Result = TypeVar("Result", Tensor, tuple[Tensor, Tensor])


def map_chunks(function: Callable[..., Tensor], sequences: Sequence[Ragged], rows: int) -> Tensor:
    """Concatenate `function(*chunk)` over chunks of whole videos with at most `rows` rows (or one video)."""
    counts = _videos_per_chunk([ragged.layout.lengths for ragged in sequences], rows)
    chunks = zip(*(ragged.split(counts) for ragged in sequences), strict=True)
    return torch.cat([function(*chunk) for chunk in chunks])


def _videos_per_chunk(lengths: Sequence[Sequence[int]], rows: int) -> list[int]:
    counts, totals = [0], [0] * len(lengths)
    for video in zip(*lengths, strict=True):
        totals = [total + length for total, length in zip(totals, video, strict=True)]
        if counts[-1] and max(totals) > rows:
            counts.append(0)
            totals = list(video)
        counts[-1] += 1
    return counts


def checkpointed(function: Callable[..., Result], *arguments: Any) -> Result:
    """`function(*arguments)`, recomputed in the backward pass.

    A matrix product that comes last is not computed again, since nothing reads its result.
    """
    if not torch.is_grad_enabled():
        return function(*arguments)
    result: Result = checkpoint(function, *arguments, use_reentrant=False)
    return result
