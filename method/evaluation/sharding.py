"""Evaluation sharded over processes: each encodes whole batches and ranks whole blocks, as a single process would.

Shards are contiguous and differ by at most one batch or block, so that the shards of all ranks, in order of rank, are
the results of one process. Letters: N rows of one process, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor

from method.evaluation.row_buffer import RowBuffer
from method.runtime.processes import Processes

_Item = TypeVar("_Item")


def shard(count: int, processes: Processes) -> slice:
    """The slice of `count` items that belongs to this process; may be empty.

    >>> from method.runtime.processes import SINGLE_PROCESS
    >>> shard(7, SINGLE_PROCESS)
    slice(0, 7, None)
    """
    return slice(count * processes.rank // processes.count, count * (processes.rank + 1) // processes.count)


def shard_batches(items: int, batch_size: int, processes: Processes) -> slice:
    """The slice of items that belongs to this process, cut between batches."""
    batches = shard(-(-items // batch_size), processes)
    return slice(batches.start * batch_size, batches.stop * batch_size)


def all_gather_items(own: list[_Item], processes: Processes) -> list[_Item]:
    """The items of all processes in order of rank."""
    return [item for shard_ in processes.gather(own) for item in shard_]


def all_gather_rows(own: RowBuffer, processes: Processes) -> Iterator[Tensor]:
    """The rows of all processes in order of rank, in chunks; drains `own`, which may be empty."""
    if processes.count == 1:
        yield from own.drain()
        return
    rows_ND = torch.cat(list(own.drain()))
    counts = [count for (count,) in processes.exchange([len(rows_ND)])]
    yield processes.rows(rows_ND, counts, partial=False)
