"""A growing buffer of rows that does not fragment memory.

A small tensor that outlives the large ones allocated around it splits the memory that they free. With one such tensor
per batch, a process soon holds many times the memory it uses. Rows are therefore copied into chunks large enough for
the allocator to map each separately.

Letters: n rows of a batch, D width.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# glibc maps allocations of 32 MiB and more one by one, whatever was freed before.
_CHUNK_BYTES = 64 * 2**20


class RowBuffer:
    """Rows (n, D) of successive batches in order; on a CPU memory is taken only as they are written."""

    def __init__(self, width: int, dtype: torch.dtype, device: torch.device) -> None:
        self._chunks: list[Tensor] = []
        self._free = 0  # unwritten rows of the last chunk
        self._empty_0D = torch.empty(0, width, dtype=dtype, device=device)

    def append(self, rows_nD: Tensor) -> None:
        """Copy rows, cast to the dtype of the buffer."""
        while len(rows_nD):
            if not self._free:
                self._free = max(1, _CHUNK_BYTES // (self._empty_0D.element_size() * rows_nD.shape[1]))
                self._chunks.append(self._empty_0D.new_empty(self._free, rows_nD.shape[1]))
            fitting_nD, rows_nD = rows_nD[: self._free], rows_nD[self._free :]
            chunk_mD = self._chunks[-1]
            start = len(chunk_mD) - self._free
            chunk_mD[start : start + len(fitting_nD)] = fitting_nD
            self._free -= len(fitting_nD)

    def drain(self) -> Iterator[Tensor]:
        """Empty the buffer in chunks, at least one; each is released when the next is requested."""
        chunks = self._chunks or [self._empty_0D]
        chunks[-1] = chunks[-1][: len(chunks[-1]) - self._free]
        self._chunks, self._free = [], 0
        chunks.reverse()
        while chunks:
            yield chunks.pop()
