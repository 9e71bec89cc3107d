"""Sequences of different lengths as one matrix of rows, so that nothing is computed for padding.

Letters: B sequences, N rows of all sequences one after the other, L the longest sequence, D width.
The lengths are Python numbers: asking a GPU for one would make the program wait for it. What a kernel needs to know of
them is made where the rows are, from a few numbers a sequence that are sent there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from method.runtime import hardware


@dataclass(frozen=True)
class Layout:
    """Where the rows of B sequences lie.

    lengths: rows of each sequence.
    real: how many of them, from the start, are real; the rest only feeds what reads past the end of a sequence.
    longest: real rows of the longest sequence of the whole batch, of which this may be the share of one process.
    device: of the rows, and of all tensors here, each of which is made when it is first asked for.
    """

    lengths: tuple[int, ...]
    real: tuple[int, ...]
    longest: int
    device: torch.device

    @classmethod
    def of(
        cls,
        lengths: Sequence[int],
        real: Sequence[int] | None = None,
        longest: int | None = None,
        device: torch.device | str = "cpu",
    ) -> Layout:
        """Lay out sequences of these lengths on a device; all rows are real unless `real` counts fewer."""
        real = lengths if real is None else real
        longest = max(real, default=0) if longest is None else longest
        if any(r < 1 or r > n for n, r in zip(lengths, real, strict=True)):
            raise ValueError(f"every sequence needs 1 to its length of real rows, got lengths {lengths}, real {real}")
        return cls(tuple(lengths), tuple(real), longest, torch.device(device))

    @property
    def rows(self) -> int:
        """N, the rows of all sequences."""
        return sum(self.lengths)

    @property
    def max_length(self) -> int:
        """L, the rows of the longest sequence."""
        return max(self.lengths, default=0)

    @property
    def is_dense(self) -> bool:
        """Whether all sequences are equally long, so that rows and (B, L) are the same memory."""
        return len(set(self.lengths)) <= 1

    @cached_property
    def _sizes_3B(self) -> Tensor:
        """Rows, real rows and the first row of each sequence: all that travels to the device, in one go."""
        starts = list(accumulate(self.lengths, initial=0))[:-1]
        return hardware.sent(torch.tensor([self.lengths, self.real, starts], dtype=torch.long), self.device)

    @cached_property
    def lengths_B(self) -> Tensor:
        """(B,) the rows of each sequence."""
        return self._sizes_3B[0]

    @cached_property
    def real_B(self) -> Tensor:
        """(B,) the real rows of each sequence."""
        return self._sizes_3B[1]

    @cached_property
    def starts_B(self) -> Tensor:
        """(B,) the first row of each sequence."""
        return self._sizes_3B[2]

    @cached_property
    def owner_N(self) -> Tensor:
        """(N,) the sequence of each row."""
        return torch.repeat_interleave(self.lengths_B, output_size=self.rows)

    @cached_property
    def position_N(self) -> Tensor:
        """(N,) the place of each row in its sequence."""
        return torch.arange(self.rows, device=self.device) - self.starts_B[self.owner_N]

    @cached_property
    def real_N(self) -> Tensor:
        """(N,) boolean, True for real rows."""
        return self.position_N < self.real_B[self.owner_N]

    @cached_property
    def real_BL(self) -> Tensor:
        """(B, L) boolean, True for real rows."""
        return torch.arange(self.max_length, device=self.device) < self.real_B[:, None]

    @cached_property
    def mask_BL(self) -> Tensor | None:
        """`real_BL`, or None where all places are real: attention is quicker without a mask."""
        return None if self.is_dense and self.real == self.lengths else self.real_BL

    @cached_property
    def _place_N(self) -> Tensor:
        return self.owner_N * self.max_length + self.position_N

    @cached_property
    def of_real(self) -> Layout:
        """The layout of the real rows alone."""
        if self.real == self.lengths:
            return self
        return Layout.of(self.real, longest=self.longest, device=self.device)

    @cached_property
    def _place_of_real(self) -> Tensor:
        """Where each of the real rows lies."""
        return self.starts_B[self.of_real.owner_N] + self.of_real.position_N

    def expect_rows(self, rows: Tensor) -> None:
        """ValueError unless this lays out as many rows: a loop of ours would read behind their end."""
        if len(rows) != self.rows:
            raise ValueError(f"{len(rows)} rows for sequences of {self.rows} rows")

    def to(self, device: torch.device | str) -> Layout:
        """The same layout on another device."""
        return replace(self, device=torch.device(device))

    def pad(self, rows_ND: Tensor) -> Tensor:
        """Rows (N, ...) as (B, L, ...), zeros behind the end of each sequence."""
        shape = (len(self.lengths), self.max_length, *rows_ND.shape[1:])
        if self.is_dense:
            return rows_ND.view(shape)
        padded = rows_ND.new_zeros(shape[0] * shape[1], *rows_ND.shape[1:])
        return padded.index_copy_(0, self._place_N, rows_ND).view(shape)

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
        layout = Layout.of(lengths, self.layout.real, self.layout.longest, self.layout.device)
        rows = self.values.new_zeros(layout.rows, self.values.shape[1])
        place_N = layout.starts_B[self.layout.owner_N] + self.layout.position_N
        return Ragged(rows.index_copy_(0, place_N, self.values), layout)

    def real(self) -> Ragged:
        """Only the real rows."""
        layout = self.layout.of_real
        if layout is self.layout:
            return self
        return Ragged(self.values.index_select(0, self.layout._place_of_real), layout)

    def split(self, counts: Sequence[int]) -> list[Ragged]:
        """Parts with so many sequences each."""
        if len(counts) == 1:
            return [self]
        ends = list(accumulate(counts, initial=0))
        lengths = [self.layout.lengths[first:end] for first, end in pairwise(ends)]
        real = [self.layout.real[first:end] for first, end in pairwise(ends)]
        # Splitting, unlike slicing, puts the gradients together once and not in a whole matrix for each part.
        values = self.values.split([sum(part) for part in lengths])
        others = (self.layout.longest, self.layout.device)
        layouts = [Layout.of(*part, *others) for part in zip(lengths, real, strict=True)]
        return [Ragged(*part) for part in zip(values, layouts, strict=True)]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Ragged:
        """The same sequences on another device."""
        return Ragged(self.values.to(device, non_blocking=non_blocking), self.layout.to(device))

    def pin_memory(self) -> Ragged:
        """The same sequences in page-locked memory."""
        return self.with_values(self.values.pin_memory())
