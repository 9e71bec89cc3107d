"""Time spent in the parts of a step, also on a GPU, where kernels run asynchronously."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import torch

from method.runtime import hardware


class Stopwatch:
    """Accumulates the seconds of named parts. On a GPU it records CUDA events and synchronizes only when read."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds: dict[str, float] = {}
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time the block on the device."""
        if not hardware.is_gpu(self._device):
            started = time.perf_counter()
            yield
            self.add(name, time.perf_counter() - started)
            return
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        stream = torch.cuda.current_stream(self._device)  # of this device, not of the current one
        begin.record(stream)
        yield
        end.record(stream)
        self._events.append((name, begin, end))

    def add(self, name: str, seconds: float) -> None:
        """Add seconds measured elsewhere."""
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds

    def read(self) -> dict[str, float]:
        """Seconds of each part since the last call."""
        if self._events:
            torch.cuda.synchronize(self._device)
            for name, begin, end in self._events:
                self.add(name, begin.elapsed_time(end) / 1000)
        seconds, self._seconds, self._events = self._seconds, {}, []
        return seconds
