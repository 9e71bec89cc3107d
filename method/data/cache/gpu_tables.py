"""All training features in the memory of a device, where batches are gathered; only indices are transferred.

Letters: B items of a batch, N rows in total, D width.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor

from method.data.batch import VideoBatch
from method.data.dataset import FeatureReader, FeatureSource, with_features
from method.data.ragged import Layout, Ragged
from method.data.splits import Split, sampled_lengths
from method.runtime import hardware
from method.runtime.disk import format_bytes
from method.runtime.errors import InputError
from method.runtime.progress import progress_bar

log = logging.getLogger(__name__)

LEFT_FREE = 1 << 31  # bytes kept free on the device, for the weights and a step
_ITEMS_PER_BATCH = 64


class DeviceSource:
    """Features in the memory of a device."""

    def __init__(self, ids: Sequence[str], lengths: Sequence[int], rows_ND: Tensor) -> None:
        starts = accumulate(lengths, initial=0)
        self._rows_ND = rows_ND
        self._spans = {item_id: span for item_id, *span in zip(ids, starts, lengths, strict=False)}

    def gather(self, ids: Sequence[str]) -> Ragged:
        """The features of these items, in this order, on the device."""
        starts, lengths = zip(*(self._spans[item_id] for item_id in ids), strict=True)
        device = self._rows_ND.device
        layout, starts_B = Layout.of(lengths, device=device), hardware.to_device_async(torch.tensor(starts), device)
        index_N = starts_B[layout.owner_N] + layout.position_N
        return Ragged(self._rows_ND.index_select(0, index_N), layout)


@dataclass(frozen=True)
class WithFeatures:
    """Adds features to batches without, gathered in this process."""

    batches: Iterable[VideoBatch]
    reader: FeatureReader

    def __iter__(self) -> Iterator[VideoBatch]:
        return (with_features(batch, self.reader) for batch in self.batches)


def on_device(reader: FeatureReader, split: Split, device: torch.device) -> FeatureReader:
    """A reader with all features of a split in the memory of a device. InputError if they do not fit."""
    counts = sampled_lengths(reader, [split])
    widths = {key: source.width for key, source in reader.hdf5_sources.items()}
    size = sum(sum(counts[key].values()) * width for key, width in widths.items()) * torch.float32.itemsize
    free = free_memory(device)
    too_large = InputError(
        f"--features_on_device: the features of the {split.name} take {format_bytes(size)} and a step "
        f"{format_bytes(LEFT_FREE)} or more, {device} has {format_bytes(free)} free"
    )
    if size + LEFT_FREE > free:
        raise too_large
    log.info(
        "features of the %s in the memory of %s: %s of %s", split.name, device, format_bytes(size), format_bytes(free)
    )
    try:
        tables = {key: _load(reader, key, counts[key], widths[key], device) for key in widths}
    except torch.cuda.OutOfMemoryError:
        raise too_large from None
    return replace(reader, cached=tables)


def _load(
    reader: FeatureReader, key: str, counts: Mapping[str, int], width: int, device: torch.device
) -> FeatureSource:
    source, ids, end = reader.source(key), list(counts), 0
    rows_ND = torch.empty(sum(counts.values()), width, device=device)
    for first in progress_bar(range(0, len(ids), _ITEMS_PER_BATCH), f"loading {key}", "batch"):
        values_ND = source.gather(ids[first : first + _ITEMS_PER_BATCH]).values
        start, end = end, end + len(values_ND)
        rows_ND[start:end].copy_(values_ND)
    return DeviceSource(ids, list(counts.values()), rows_ND)


def free_memory(device: torch.device) -> float:
    """Free bytes on a device; of a CPU, the available memory, or infinity if unknown."""
    if hardware.is_gpu(device):
        return torch.cuda.mem_get_info(device)[0]
    path = Path("/proc/meminfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), float("inf"))
