"""The memory that batches of data workers lie in."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from method.data import batch
from method.data.batch import EpochBatches, EpochIndices, Loader
from method.data.workers import PREFETCHED, allocate_rows, init_worker, to_shared_memory

ITEMS, WORKERS, EPOCHS = 40, 2, 3


@dataclass
class Numbered:
    """A batch of two matrices of the item's number, and the files that they lie in."""

    narrow: Tensor
    wide: Tensor
    files: Tensor


class Items(Dataset[Numbered]):
    def __getitems__(self, drawn: EpochIndices) -> Numbered:
        (item,) = drawn.indices
        narrow, wide = (allocate_rows(3 + item % 7, width).fill_(item) for width in (4, 9))
        files = [os.fstat(rows.untyped_storage()._share_fd_cpu_()[0]).st_ino for rows in (narrow, wide)]
        return Numbered(narrow, wide, torch.tensor([os.getpid(), *files]))


def read_all() -> tuple[list[tuple[int, Tensor, Tensor]], Tensor]:
    """Copies of all batches, with the numbers that they should have, and the files they lay in."""
    order = EpochBatches(ITEMS, batch_size=1, seed=0)
    loader = Loader(Items(), order, WORKERS, pinned=False)
    batches, files = [], []
    for order.epoch in range(EPOCHS):
        for (_, (item,)), read in zip(order, loader, strict=True):
            batches.append((item, read.narrow.clone(), read.wide.clone()))
            files.append(read.files)
    return batches, torch.stack(files)


def test_what_is_copied_at_once_lies_in_memory_that_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "init_worker", lambda worker, copied: init_worker(worker, copied=True))
    batches, files = read_all()
    for item, narrow, wide in batches:
        assert torch.equal(narrow, torch.full((3 + item % 7, 4), float(item)))
        assert torch.equal(wide, torch.full((3 + item % 7, 9), float(item)))
    for worker in files[:, 0].unique():
        own = files[files[:, 0] == worker, 1:]
        assert own.unique().numel() < len(own)  # two for each batch if they were fresh
        for place in range(len(own) - PREFETCHED):  # but what may be read yet is let alone
            assert own[place : place + PREFETCHED + 1].unique().numel() == 2 * (PREFETCHED + 1)


def test_what_is_not_copied_keeps_its_memory() -> None:
    order = EpochBatches(ITEMS, batch_size=1, seed=0)
    kept = list(Loader(Items(), order, WORKERS, pinned=False))
    for (_, (item,)), read in zip(order, kept, strict=True):
        assert torch.equal(read.wide, torch.full((3 + item % 7, 9), float(item)))


def test_outside_of_workers_nothing_is_shared() -> None:
    rows: Sequence[Tensor] = [to_shared_memory(allocate_rows(2, 3)) for _ in range(2)]  # type: ignore[misc]
    assert not rows[0].is_shared()
    assert rows[0].data_ptr() != rows[1].data_ptr()
