"""Rows that are kept while much else comes and goes.

A small tensor made between large ones that are freed again splits the memory that these leave behind. Where one stays
of every batch, a process soon holds many times what it uses. Rows that stay are therefore copied to pieces of memory
large enough to be taken from the system one by one.

Letters: n rows of a batch, D width.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# From 32 MiB on glibc asks the system for each piece by itself, whatever was freed before.
_PIECE_BYTES = 64 * 2**20


class KeptRows:
    """Rows (n, D) of batch after batch, in their order; on a CPU they take memory only as they come."""

    def __init__(self, width: int, dtype: torch.dtype, device: torch.device) -> None:
        self._pieces: list[Tensor] = []
        self._free = 0  # rows of the last piece that are not yet written
        self._empty_0D = torch.empty(0, width, dtype=dtype, device=device)

    def append(self, rows_nD: Tensor) -> None:
        """Keep a copy of rows, rounded to the precision that is kept."""
        while len(rows_nD):
            if not self._free:
                self._free = max(1, _PIECE_BYTES // (self._empty_0D.element_size() * rows_nD.shape[1]))
                self._pieces.append(self._empty_0D.new_empty(self._free, rows_nD.shape[1]))
            fitting_nD, rows_nD = rows_nD[: self._free], rows_nD[self._free :]
            piece_mD = self._pieces[-1]
            first = len(piece_mD) - self._free
            piece_mD[first : first + len(fitting_nD)] = fitting_nD
            self._free -= len(fitting_nD)

    def take(self) -> Iterator[Tensor]:
        """All rows in pieces, at least one; each is forgotten as soon as the next is asked for."""
        pieces = self._pieces or [self._empty_0D]
        pieces[-1] = pieces[-1][: len(pieces[-1]) - self._free]
        self._pieces, self._free = [], 0
        pieces.reverse()
        while pieces:
            yield pieces.pop()
