"""An evaluation by several processes: each encodes whole batches, as one process would, and ranks whole blocks.

Each has as many successive ones as the others, or one less, so that what all have made lies in its order when it is put
together, the first process's first. Letters: N rows of all processes, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from method.data.ragged import Layout, Ragged
from method.distributed import Processes


def own_part(count: int, processes: Processes) -> slice:
    """Which of `count` things are this process's; there may be none.

    >>> from method.distributed import ALONE
    >>> own_part(7, ALONE)
    slice(0, 7, None)
    """
    return slice(count * processes.rank // processes.count, count * (processes.rank + 1) // processes.count)


def own_batches(items: int, batch_size: int, processes: Processes) -> slice:
    """The items of the batches that are this process's."""
    batches = own_part(-(-items // batch_size), processes)
    return slice(batches.start * batch_size, batches.stop * batch_size)


def of_all(own: Sequence[Tensor], empty_0D: Tensor, processes: Processes) -> Tensor:
    """The rows of all processes (N, D) from those of each, which may have none; `empty_0D` is what has no rows."""
    rows_ND = torch.cat([empty_0D, *own])
    counts = [count for (count,) in processes.exchange([len(rows_ND)])]
    return processes.rows(rows_ND, counts, partial=False)


def sequences_of_all(own: list[Ragged], empty_0D: Tensor, processes: Processes) -> list[Ragged]:
    """The sequences of all processes from those of each."""
    if processes.count == 1:
        return own
    lengths = processes.gather([length for rows in own for length in rows.layout.lengths])
    values_ND = of_all([rows.values for rows in own], empty_0D, processes)
    layout = Layout.of([length for of_one in lengths for length in of_one], device=values_ND.device)
    return [Ragged(values_ND, layout)]
