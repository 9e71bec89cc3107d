"""Batches of videos and captions, the order of an epoch, and the loader.

Letters: B videos, Q captions.
"""

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
from method.data.shared_memory import PREFETCHED, to_shared_memory
from method.data.workers import init_worker, read_ahead
from method.runtime import hardware
from method.runtime.errors import InputError


@dataclass(frozen=True)
class VideoBatch:
    """B videos and their Q captions, or videos alone.

    streams: branch -> frames of the B videos. tokens: token features of the Q captions, None without captions.
    labels_Q: index of each caption's video in the batch.
    edits: hard negatives of the captions, if any; their source moves them to a device.
    """

    video_ids: tuple[str, ...]
    streams: dict[str, Ragged]
    captions: tuple[Caption, ...]
    tokens: Ragged | None
    labels_Q: Tensor
    edits: PreparedEdits | None = None

    def to(self, device: torch.device, non_blocking: bool = True) -> VideoBatch:
        """The same batch on another device, except its edits."""
        streams = {branch: rows.to(device, non_blocking) for branch, rows in self.streams.items()}
        tokens = self.tokens.to(device, non_blocking) if self.tokens is not None else None
        return replace(self, streams=streams, tokens=tokens, labels_Q=hardware.to_device_async(self.labels_Q, device))

    def pin_memory(self) -> VideoBatch:
        """The same batch in page-locked memory."""
        streams = {branch: rows.pin_memory() for branch, rows in self.streams.items()}
        tokens = self.tokens.pin_memory() if self.tokens is not None else None
        edits = self.edits.pin_memory() if self.edits is not None else None
        return replace(self, streams=streams, tokens=tokens, labels_Q=self.labels_Q.pin_memory(), edits=edits)


@dataclass(frozen=True)
class QueryBatch:
    """Q captions and their token features."""

    captions: tuple[Caption, ...]
    tokens: Ragged

    def to(self, device: torch.device, non_blocking: bool = True) -> QueryBatch:
        """The same batch on another device."""
        return QueryBatch(self.captions, self.tokens.to(device, non_blocking))

    def pin_memory(self) -> QueryBatch:
        """The same batch in page-locked memory."""
        return QueryBatch(self.captions, self.tokens.pin_memory())


class EpochIndices(NamedTuple):
    """Indices of a batch's videos in the dataset, and the epoch, which persistent workers cannot know otherwise."""

    epoch: int
    indices: list[int]


class EpochBatches(Sampler[EpochIndices]):
    """Random batches that depend on (seed, epoch) alone, not on the number of workers or on where a run resumed.

    `epoch` and `start`, the first batch to draw, are set before each pass. Each of `count` processes draws its shard of
    every batch. A rank with an empty shard gets the batch's first video as a dummy, so that collective calls match.
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

    def shard(self, batch: int) -> range:
        """Positions, within a batch, of the videos of this process."""
        videos = min(self.batch_size, self.items - batch * self.batch_size)
        return range(videos * self.rank // self.count, videos * (self.rank + 1) // self.count)

    def __iter__(self) -> Iterator[EpochIndices]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.items).tolist()
        for batch in range(self.start, len(self)):
            videos = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            shard = self.shard(batch)
            yield EpochIndices(self.epoch, videos[shard.start : shard.stop] or videos[:1])


class Loader:
    """A DataLoader of whole batches that raises errors in data in the main process.

    Args:
        dataset: `__getitems__` returns a batch, or the InputError that reading it raised.
        batches: the batch size, to read in order, or an EpochBatches. `__getitems__` gets a list of indices or an
            EpochIndices.
        workers: number of data workers; 0 reads in this process.
        pinned: copy batches to page-locked memory, for transfer to a GPU.
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
            # The forkserver, the default from Python 3.14, would be the parent of the workers and outlive this process.
            multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
            pin_memory=pinned,
            persistent_workers=workers > 0,
            prefetch_factor=PREFETCHED if workers else None,
            # With a GPU, pinning copies each batch on arrival.
            worker_init_fn=partial(init_worker, copied=pinned and torch.cuda.is_available()),
            # With the global generator, iterating would change the dropout of a resumed run.
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
                    del batch  # a reference cycle through the traceback would keep the workers alive
            yield batch
