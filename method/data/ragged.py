"""Sequences of different lengths, concatenated, so that nothing is computed for padding.

Letters: B sequences, N rows in total, V of them valid, L rows of the longest sequence, D width.
Lengths are Python integers, because reading one from a GPU would synchronise with it. Index tensors are computed on the
device from a few numbers per sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from method.runtime import hardware

MANY_ROWS = 32  # BLAS libraries multiply, and thus round, fewer rows in other ways than many


@dataclass(frozen=True)
class Layout:
    """How B sequences lie in the concatenated rows.

    lengths: rows of each sequence.
    valid: how many of these, from the start, are valid. The others are padding that an operation reads past the end.
    longest: valid rows of the longest sequence of the whole batch, of which this may be the shard of one process.
    device: of the rows and of all tensors here, which are computed on first use.
    multiple: to which L is rounded up.
    """

    lengths: tuple[int, ...]
    valid: tuple[int, ...]
    longest: int
    device: torch.device
    multiple: int = 1

    @classmethod
    def of(
        cls,
        lengths: Sequence[int],
        valid: Sequence[int] | None = None,
        longest: int | None = None,
        device: torch.device | str = "cpu",
    ) -> Layout:
        """Lay out sequences of these lengths; all rows are valid by default. ValueError for one without valid rows."""
        valid = lengths if valid is None else valid
        longest = max(valid, default=0) if longest is None else longest
        if any(v < 1 or v > n for n, v in zip(lengths, valid, strict=True)):
            raise ValueError(f"expected 1 to length valid rows in each sequence, got lengths {lengths}, valid {valid}")
        return cls(tuple(lengths), tuple(valid), longest, torch.device(device))

    @property
    def rows(self) -> int:
        """N."""
        return sum(self.lengths)

    @property
    def max_length(self) -> int:
        """L."""
        return -(-max(self.lengths, default=0) // self.multiple) * self.multiple

    @cached_property
    def rounded(self) -> Layout:
        """The same with L a multiple of `MANY_ROWS`: products and sums then do not depend on other sequences."""
        return replace(self, multiple=MANY_ROWS)

    @property
    def is_dense(self) -> bool:
        """Whether all sequences have L rows, so that padding is a view."""
        return set(self.lengths) <= {self.max_length}

    @cached_property
    def _sizes_3B(self) -> Tensor:
        """Length, valid rows and first row of each sequence, copied to the device at once."""
        starts = list(accumulate(self.lengths, initial=0))[:-1]
        return hardware.to_device_async(torch.tensor([self.lengths, self.valid, starts], dtype=torch.long), self.device)

    @cached_property
    def lengths_B(self) -> Tensor:
        """(B,) rows of each sequence."""
        return self._sizes_3B[0]

    @cached_property
    def valid_B(self) -> Tensor:
        """(B,) valid rows of each sequence."""
        return self._sizes_3B[1]

    @cached_property
    def starts_B(self) -> Tensor:
        """(B,) index of the first row of each sequence."""
        return self._sizes_3B[2]

    @cached_property
    def owner_N(self) -> Tensor:
        """(N,) index of the sequence of each row."""
        return torch.repeat_interleave(self.lengths_B, output_size=self.rows)

    @cached_property
    def position_N(self) -> Tensor:
        """(N,) position of each row in its sequence."""
        return torch.arange(self.rows, device=self.device) - self.starts_B[self.owner_N]

    @cached_property
    def valid_BL(self) -> Tensor:
        """(B, L) boolean, True for valid rows."""
        return torch.arange(self.max_length, device=self.device) < self.valid_B[:, None]

    @cached_property
    def mask_BL(self) -> Tensor | None:
        """`valid_BL`, or None if all of it is True: attention is faster without a mask."""
        return None if self.is_dense and self.valid == self.lengths else self.valid_BL

    @cached_property
    def _padded_index_N(self) -> Tensor:
        return self.owner_N * self.max_length + self.position_N

    @cached_property
    def valid_layout(self) -> Layout:
        """The layout of the valid rows only."""
        if self.valid == self.lengths:
            return self
        return Layout.of(self.valid, longest=self.longest, device=self.device)

    @cached_property
    def _valid_index_V(self) -> Tensor:
        """(V,) index of each valid row."""
        return self.starts_B[self.valid_layout.owner_N] + self.valid_layout.position_N

    def expect_rows(self, rows: Tensor) -> None:
        """ValueError if the number of rows differs: a kernel would read out of bounds."""
        if len(rows) != self.rows:
            raise ValueError(f"got {len(rows)} rows, expected {self.rows}")

    def to(self, device: torch.device | str) -> Layout:
        """The same layout on another device."""
        return replace(self, device=torch.device(device))

    def pad(self, rows_ND: Tensor, value: float = 0.0) -> Tensor:
        """Rows (N, ...) as (B, L, ...), padded with a value."""
        shape = (len(self.lengths), self.max_length, *rows_ND.shape[1:])
        if self.is_dense:
            return rows_ND.view(shape)
        padded = rows_ND.new_full((shape[0] * shape[1], *rows_ND.shape[1:]), value)
        return padded.index_copy_(0, self._padded_index_N, rows_ND).view(shape)

    def unpad(self, padded_BLD: Tensor) -> Tensor:
        """The inverse of `pad`: (B, L, ...) as rows (N, ...)."""
        rows = padded_BLD.reshape(-1, *padded_BLD.shape[2:])
        return rows if self.is_dense else rows.index_select(0, self._padded_index_N)


@dataclass(frozen=True)
class Ragged:
    """B sequences of D-wide rows: values (N, D) and their layout."""

    values: Tensor
    layout: Layout

    @classmethod
    def of(cls, sequences: Sequence[Tensor]) -> Ragged:
        """Concatenate sequences (n_b, D) on the CPU."""
        return cls(torch.cat(list(sequences)), Layout.of([len(sequence) for sequence in sequences]))

    def __len__(self) -> int:
        return len(self.layout.lengths)

    def with_values(self, values: Tensor) -> Ragged:
        """Other values (N, ...) in the same layout."""
        return Ragged(values, self.layout)

    def extended(self, lengths: Sequence[int]) -> Ragged:
        """Append zero rows to each sequence, up to `lengths`; the new rows are not valid."""
        if tuple(lengths) == self.layout.lengths:
            return self
        layout = Layout.of(lengths, self.layout.valid, self.layout.longest, self.layout.device)
        rows = self.values.new_zeros(layout.rows, self.values.shape[1])
        index_N = layout.starts_B[self.layout.owner_N] + self.layout.position_N
        return Ragged(rows.index_copy_(0, index_N, self.values), layout)

    def with_last_repeated(self, copies: int) -> Ragged:
        """Append copies of the last sequence."""
        if not copies:
            return self
        layout, last = self.layout, self.layout.lengths[-1]
        lengths, valid = (own + own[-1:] * copies for own in (layout.lengths, layout.valid))
        rows = torch.cat([self.values, *[self.values[-last:]] * copies])
        return Ragged(rows, Layout(lengths, valid, layout.longest, layout.device))

    def first(self, count: int) -> Ragged:
        """The first sequences."""
        return self if count == len(self) else self.split([count, len(self) - count])[0]

    def valid(self) -> Ragged:
        """Only the valid rows."""
        layout = self.layout.valid_layout
        if layout is self.layout:
            return self
        return Ragged(self.values.index_select(0, self.layout._valid_index_V), layout)

    def means(self) -> Tensor:
        """The mean of each sequence's valid rows, (B, D)."""
        rows = self.valid()
        return rows.layout.pad(rows.values).sum(1) / rows.layout.lengths_B[:, None]

    def split(self, counts: Sequence[int]) -> list[Ragged]:
        """Split into parts of `counts` sequences."""
        if len(counts) == 1:
            return [self]
        ends = list(accumulate(counts, initial=0))
        lengths = [self.layout.lengths[first:end] for first, end in pairwise(ends)]
        valid = [self.layout.valid[first:end] for first, end in pairwise(ends)]
        # The backward pass of split, unlike that of slices, allocates a single gradient for all parts.
        values = self.values.split([sum(part) for part in lengths])
        others = (self.layout.longest, self.layout.device)
        layouts = [Layout.of(*part, *others) for part in zip(lengths, valid, strict=True)]
        return [Ragged(*part) for part in zip(values, layouts, strict=True)]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Ragged:
        """The same sequences on another device."""
        return Ragged(self.values.to(device, non_blocking=non_blocking), self.layout.to(device))

    def pin_memory(self) -> Ragged:
        """The same sequences in page-locked memory."""
        return self.with_values(self.values.pin_memory())
