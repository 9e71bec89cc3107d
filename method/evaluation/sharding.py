"""An evaluation by several processes: each encodes whole batches, as one process would, and ranks whole blocks.

Each has as many successive ones as the others, or one less, so that what all have made lies in its order when it is put
together, the first process's first. Letters: N rows of one process, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor

from method.evaluation.row_buffer import KeptRows
from method.runtime.processes import Processes

_Item = TypeVar("_Item")


def own_part(count: int, processes: Processes) -> slice:
    """Which of `count` things are this process's; there may be none.

    >>> from method.runtime.processes import SINGLE_PROCESS
    >>> own_part(7, SINGLE_PROCESS)
    slice(0, 7, None)
    """
    return slice(count * processes.rank // processes.count, count * (processes.rank + 1) // processes.count)


def own_batches(items: int, batch_size: int, processes: Processes) -> slice:
    """The items of the batches that are this process's."""
    batches = own_part(-(-items // batch_size), processes)
    return slice(batches.start * batch_size, batches.stop * batch_size)


def items_of_all(own: list[_Item], processes: Processes) -> list[_Item]:
    """The items of all processes from those of each."""
    return [item for of_one in processes.gather(own) for item in of_one]


def rows_of_all(own: KeptRows, processes: Processes) -> Iterator[Tensor]:
    """The rows of all processes from those of each, which may have none, in pieces; `own` is forgotten on the way."""
    if processes.count == 1:
        yield from own.take()
        return
    rows_ND = torch.cat(list(own.take()))
    counts = [count for (count,) in processes.exchange([len(rows_ND)])]
    yield processes.rows(rows_ND, counts, partial=False)
