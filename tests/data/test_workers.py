"""The memory of batches from data workers."""

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
from method.data.shared_memory import PREFETCHED, allocate_rows, to_shared_memory
from method.data.workers import init_worker

ITEMS, WORKERS, EPOCHS = 40, 2, 3


@dataclass
class Numbered:
    """Two matrices filled with the index of the item, and [process, inode of each matrix's shared memory]."""

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
    """Copies of all batches with their expected values, and where each was stored."""
    order = EpochBatches(ITEMS, batch_size=1, seed=0)
    loader = Loader(Items(), order, WORKERS, pinned=False)
    batches, files = [], []
    for order.epoch in range(EPOCHS):
        for (_, (item,)), read in zip(order, loader, strict=True):
            batches.append((item, read.narrow.clone(), read.wide.clone()))
            files.append(read.files)
    return batches, torch.stack(files)


def test_memory_is_reused_when_batches_are_copied_on_arrival(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "init_worker", lambda worker, copied: init_worker(worker, copied=True))
    batches, files = read_all()
    for item, narrow, wide in batches:
        assert torch.equal(narrow, torch.full((3 + item % 7, 4), float(item)))
        assert torch.equal(wide, torch.full((3 + item % 7, 9), float(item)))
    for worker in files[:, 0].unique():
        own = files[files[:, 0] == worker, 1:]
        assert own.unique().numel() < len(own)  # each batch would have two of its own
        for first in range(len(own) - PREFETCHED):  # batches that may be unread are intact
            assert own[first : first + PREFETCHED + 1].unique().numel() == 2 * (PREFETCHED + 1)


def test_memory_is_not_reused_otherwise() -> None:
    order = EpochBatches(ITEMS, batch_size=1, seed=0)
    kept = list(Loader(Items(), order, WORKERS, pinned=False))
    for (_, (item,)), read in zip(order, kept, strict=True):
        assert torch.equal(read.wide, torch.full((3 + item % 7, 9), float(item)))


def test_nothing_is_shared_outside_of_workers() -> None:
    rows: Sequence[Tensor] = [to_shared_memory(allocate_rows(2, 3)) for _ in range(2)]  # type: ignore[misc]
    assert not rows[0].is_shared()
    assert rows[0].data_ptr() != rows[1].data_ptr()
