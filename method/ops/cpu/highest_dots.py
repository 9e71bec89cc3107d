"""The highest dot product of each query with the rows of each video: rows are read once, and no product is stored.

Letters: N rows, B videos, Q queries, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from method.ops.cpu import kernels
from method.ops.cpu.threads import as_array, run_in_threads


def highest_dots(rows_ND: Tensor, starts_B: Tensor, lengths_B: Tensor, queries_QD: Tensor) -> Tensor:
    """See `method.ops.highest_dots`."""
    highest_BQ = torch.empty(len(starts_B), len(queries_QD))
    read = [as_array(tensor.contiguous()) for tensor in (rows_ND, starts_B, lengths_B, queries_QD)]
    written = as_array(highest_BQ)
    run_in_threads(lambda start, stop: kernels.highest_dots(*read, start, stop, written), read[2], min_size=1024)
    return highest_BQ
