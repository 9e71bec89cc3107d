"""Shared memory for the batches of data workers, which hands them to the main process without a copy."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from method.runtime.errors import InputError

_Batch = TypeVar("_Batch")

PREFETCHED = 2  # batches that each worker prepares ahead
REMEDY = "use fewer --num_workers, or 0, which needs no /dev/shm (containers: raise --shm-size)"


class _BatchMemory:
    """The shared memory of a worker's batches.

    With `reuse`, the memory of earlier batches is used again: allocating and clearing fresh pages takes several times
    as long as filling them.
    """

    def __init__(self) -> None:
        self.reuse = False
        # A worker starts a batch when the main process has the one PREFETCHED before; later ones may still be unread.
        self._generations: list[list[torch.UntypedStorage]] = [[] for _ in range(PREFETCHED + 1)]
        self._taken = 0

    def end_batch(self) -> None:
        """Make the memory of the oldest batch available for the next one."""
        self._generations.append(self._generations.pop(0))
        self._taken = 0

    def allocate(self, size: int) -> torch.UntypedStorage:
        """At least `size` bytes that nothing else in this batch uses."""
        if not self.reuse:
            return torch.UntypedStorage._new_shared(size)
        storages, index = self._generations[0], self._taken
        self._taken += 1
        if index == len(storages):
            storages.append(torch.UntypedStorage._new_shared(0))
        if len(storages[index]) < size:
            storages[index] = torch.UntypedStorage._new_shared(size + size // 8)  # room for a slightly larger batch
        return storages[index]


_memory = _BatchMemory()


def reuse_memory(reuse: bool) -> None:
    """Reuse the memory of this worker's batches; safe only if the main process copies each one on arrival."""
    _memory.reuse = reuse


def allocate_rows(count: int, width: int, dtype: type[np.floating[Any]] = np.float32) -> Tensor:
    """An uninitialised matrix (count, width); in a worker, in shared memory. InputError if there is too little."""
    if get_worker_info() is None:
        return torch.from_numpy(np.empty((count, width), dtype))  # NumPy, unlike PyTorch, asks for huge pages
    rows = torch.from_numpy(np.empty(0, dtype))
    try:
        memory = _memory.allocate(count * width * rows.itemsize)
    except (OSError, RuntimeError) as error:
        raise _no_memory(error) from error
    return rows.set_(memory, 0, (count, width), (width, 1))


def to_shared_memory(batch: _Batch) -> _Batch | InputError:
    """In a worker, move the tensors of a batch to shared memory; returns an InputError if there is too little."""
    if get_worker_info() is not None:
        _memory.end_batch()
        try:
            _share(batch)
        except (OSError, RuntimeError) as error:
            return _no_memory(error)
    return batch


def _share(value: Any) -> None:
    if isinstance(value, Tensor):
        value.share_memory_()  # type: ignore[no-untyped-call,unused-ignore]
    elif isinstance(value, dict):
        for part in value.values():
            _share(part)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            _share(getattr(value, field.name))


def _no_memory(error: Exception) -> InputError:
    return InputError(f"no shared memory for a batch ({str(error).splitlines()[0]}); {REMEDY}")
