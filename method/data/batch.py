"""Batches: videos and captions as ragged rows, the order in which epochs draw them, and who reads them ahead."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from method.data.captions import Caption
from method.data.edits import PreparedEdits
from method.data.ragged import Ragged
from method.data.workers import PREFETCHED, init_worker, read_ahead, to_shared_memory
from method.runtime import hardware
from method.runtime.errors import InputError


@dataclass(frozen=True)
class VideoBatch:
    """B videos and their Q captions; labels_Q[q] is the place in the batch of caption q's video.

    A batch to be searched has no captions, and then no tokens.

    edits: of the captions, where there is a source of them; they go to a device by their source.
    """

    video_ids: tuple[str, ...]
    streams: dict[str, Ragged]
    captions: tuple[Caption, ...]
    tokens: Ragged | None
    labels_Q: Tensor
    edits: PreparedEdits | None = None

    def to(self, device: torch.device, non_blocking: bool = True) -> VideoBatch:
        """The same batch on another device, but for its edits."""
        streams = {branch: rows.to(device, non_blocking) for branch, rows in self.streams.items()}
        tokens = self.tokens.to(device, non_blocking) if self.tokens is not None else None
        return replace(self, streams=streams, tokens=tokens, labels_Q=hardware.sent(self.labels_Q, device))

    def pin_memory(self) -> VideoBatch:
        """The same batch in page-locked memory."""
        streams = {branch: rows.pin_memory() for branch, rows in self.streams.items()}
        tokens = self.tokens.pin_memory() if self.tokens is not None else None
        edits = self.edits.pin_memory() if self.edits is not None else None
        return replace(self, streams=streams, tokens=tokens, labels_Q=self.labels_Q.pin_memory(), edits=edits)


@dataclass(frozen=True)
class QueryBatch:
    """Captions and their token features."""

    captions: tuple[Caption, ...]
    tokens: Ragged

    def to(self, device: torch.device, non_blocking: bool = True) -> QueryBatch:
        """The same batch on another device."""
        return QueryBatch(self.captions, self.tokens.to(device, non_blocking))

    def pin_memory(self) -> QueryBatch:
        """The same batch in page-locked memory."""
        return QueryBatch(self.captions, self.tokens.pin_memory())


class EpochIndices(NamedTuple):
    """The places of a batch's videos in their dataset, and the epoch that draws them: workers outlive one."""

    epoch: int
    indices: list[int]


class EpochBatches(Sampler[EpochIndices]):
    """The order of an epoch, from (seed, epoch) alone, so that a resumed run and any number of workers agree.

    `epoch` and `start`, the first batch that is drawn, are set before each pass. Of `count` processes each draws its
    share of every batch. One whose share is empty draws the batch's first video, which then counts for nothing, to do
    all that the others wait for.
    """

    def __init__(self, items: int, batch_size: int, seed: int, rank: int = 0, count: int = 1) -> None:
        self.items = items
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.count = count
        self.epoch = 0
        self.start = 0

    def __len__(self) -> int:
        return -(-self.items // self.batch_size)

    def share(self, batch: int) -> range:
        """The places in a batch, counted from 0, of the videos that are this process's."""
        videos = min(self.batch_size, self.items - batch * self.batch_size)
        return range(videos * self.rank // self.count, videos * (self.rank + 1) // self.count)

    def __iter__(self) -> Iterator[EpochIndices]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.items).tolist()
        for batch in range(self.start, len(self)):
            videos = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            share = self.share(batch)
            yield EpochIndices(self.epoch, videos[share.start : share.stop] or videos[:1])


class Loader:
    """Batches of a dataset, read ahead by workers.

    Args:
        dataset: gives batches by `__getitems__`, or the InputError that reading one met, which is raised here, in the
            main process.
        batches: how many items a batch has, in order, or an EpochBatches; `__getitems__` is given the places of a
            batch, or its EpochIndices.
        workers: processes; 0 reads in this one.
        pinned: whether batches are put into page-locked memory for a GPU.
    """

    def __init__(self, dataset: Dataset[Any], batches: int | EpochBatches, workers: int, pinned: bool) -> None:
        batched: dict[str, Any] = {"batch_size": batches}
        if isinstance(batches, EpochBatches):
            batched = {"batch_sampler": batches}
        self._loader: DataLoader[Any] = DataLoader(
            dataset,
            **batched,
            collate_fn=to_shared_memory,
            num_workers=workers,
            # Newer Pythons would start a server, whose children do not notice the main process's end.
            multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
            pin_memory=pinned,
            persistent_workers=workers > 0,
            prefetch_factor=PREFETCHED if workers else None,
            # Page-locked memory, where there is a GPU, is a copy that is made as soon as a batch arrives.
            worker_init_fn=partial(init_worker, copied=pinned and torch.cuda.is_available()),
            # Its own generator: with the global one, looking at the data would change the dropout of a resumed run.
            generator=torch.Generator().manual_seed(0),
        )

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        for batch in read_ahead(self._loader) if self._loader.num_workers else self._loader:
            if isinstance(batch, InputError):
                try:
                    raise batch
                finally:
                    del batch  # an exception that its own frame holds keeps the workers waiting for garbage collection
            yield batch
