"""Sequences of different lengths as one matrix of rows, so that nothing is computed for padding.

Letters: B sequences, N rows of all sequences one after the other, L the longest sequence, D width.
Everything a kernel needs to know about the lengths is made once on the CPU and moved along with the rows:
asking a GPU for a length would make the program wait for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Where the rows of B sequences lie.

    lengths: rows of each sequence, in Python, so that sizes never have to be fetched from a device.
    real: how many of them, from the start, are real; the rest only feeds what reads past the end of a sequence.
    longest: real rows of the longest sequence of the whole batch, of which this may be the share of one process.
    owner_N, position_N: the sequence of each row and its place there.
    lengths_B, real_B: the same lengths as tensors.
    """

    lengths: tuple[int, ...]
    real: tuple[int, ...]
    longest: int
    owner_N: Tensor
    position_N: Tensor
    lengths_B: Tensor
    real_B: Tensor

    @classmethod
    def of(cls, lengths: Sequence[int], real: Sequence[int] | None = None, longest: int | None = None) -> Layout:
        """Lay out sequences of these lengths on the CPU; all rows are real unless `real` counts fewer."""
        real = lengths if real is None else real
        longest = max(real, default=0) if longest is None else longest
        if any(r < 1 or r > n for n, r in zip(lengths, real, strict=True)):
            raise ValueError(f"every sequence needs 1 to its length of real rows, got lengths {lengths}, real {real}")
        lengths_B = torch.tensor(lengths, dtype=torch.long)
        owner_N = torch.repeat_interleave(torch.arange(len(lengths)), lengths_B)
        starts_B = lengths_B.cumsum(0) - lengths_B
        position_N = torch.arange(len(owner_N)) - starts_B[owner_N]
        real_B = torch.tensor(real, dtype=torch.long)
        return cls(tuple(lengths), tuple(real), longest, owner_N, position_N, lengths_B, real_B)

    @property
    def max_length(self) -> int:
        """L, the rows of the longest sequence."""
        return max(self.lengths, default=0)

    @property
    def is_dense(self) -> bool:
        """Whether all sequences are equally long, so that rows and (B, L) are the same memory."""
        return len(set(self.lengths)) <= 1

    @cached_property
    def real_N(self) -> Tensor:
        """(N,) boolean, True for real rows."""
        return self.position_N < self.real_B[self.owner_N]

    @cached_property
    def real_BL(self) -> Tensor:
        """(B, L) boolean, True for real rows."""
        return torch.arange(self.max_length, device=self.real_B.device) < self.real_B[:, None]

    @cached_property
    def starts_B(self) -> Tensor:
        """(B,) the first row of each sequence."""
        return self.lengths_B.cumsum(0) - self.lengths_B

    @cached_property
    def _place_N(self) -> Tensor:
        return self.owner_N * self.max_length + self.position_N

    @cached_property
    def _real_part(self) -> tuple[Layout, Tensor]:
        """The layout of the real rows alone, and where they lie in this one."""
        layout = Layout.of(self.real, longest=self.longest).to(self.owner_N.device, non_blocking=True)
        return layout, self.starts_B[layout.owner_N] + layout.position_N

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Layout:
        """The same layout on another device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Layout:
        """The same layout in page-locked memory."""
        return self._map(torch.Tensor.pin_memory)

    def _map(self, move) -> Layout:  # type: ignore[no-untyped-def]
        names = ("owner_N", "position_N", "lengths_B", "real_B")
        return replace(self, **{name: move(getattr(self, name)) for name in names})

    def pad(self, rows_ND: Tensor) -> Tensor:
        """Rows (N, ...) as (B, L, ...), zeros behind the end of each sequence."""
        shape = (len(self.lengths), self.max_length, *rows_ND.shape[1:])
        if self.is_dense:
            return rows_ND.view(shape)
        padded = rows_ND.new_zeros(shape[0] * shape[1], *rows_ND.shape[1:])
        return padded.index_copy(0, self._place_N, rows_ND).view(shape)

    def unpad(self, padded_BLD: Tensor) -> Tensor:
        """The inverse of `pad`: (B, L, ...) as rows (N, ...)."""
        rows = padded_BLD.reshape(-1, *padded_BLD.shape[2:])
        return rows if self.is_dense else rows.index_select(0, self._place_N)


@dataclass(frozen=True)
class Ragged:
    """B sequences of D-wide rows: values (N, D) and their layout."""

    values: Tensor
    layout: Layout

    @classmethod
    def of(cls, sequences: Sequence[Tensor]) -> Ragged:
        """Join sequences (n_b, D) into one on the CPU."""
        return cls(torch.cat(list(sequences)), Layout.of([len(sequence) for sequence in sequences]))

    def __len__(self) -> int:
        return len(self.layout.lengths)

    def with_values(self, values: Tensor) -> Ragged:
        """Other rows in the same layout."""
        return Ragged(values, self.layout)

    def extended(self, lengths: Sequence[int]) -> Ragged:
        """The same sequences with zero rows behind each, up to `lengths`; the new rows are not real."""
        if tuple(lengths) == self.layout.lengths:
            return self
        layout = Layout.of(lengths, self.layout.real, self.layout.longest).to(self.values.device, non_blocking=True)
        rows = self.values.new_zeros(sum(lengths), self.values.shape[1])
        place_N = layout.starts_B[self.layout.owner_N] + self.layout.position_N
        return Ragged(rows.index_copy(0, place_N, self.values), layout)

    def real(self) -> Ragged:
        """Only the real rows."""
        if self.layout.real == self.layout.lengths:
            return self
        layout, rows_N = self.layout._real_part
        return Ragged(self.values.index_select(0, rows_N), layout)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Ragged:
        """The same sequences on another device."""
        return Ragged(self.values.to(device, non_blocking=non_blocking), self.layout.to(device, non_blocking))

    def pin_memory(self) -> Ragged:
        """The same sequences in page-locked memory."""
        return Ragged(self.values.pin_memory(), self.layout.pin_memory())
