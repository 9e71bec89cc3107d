"""Where the time of a step goes, on a CPU and on a GPU, where work goes on after the call that started it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import torch

from method.runtime import hardware


class Stopwatch:
    """Sums up the seconds of named parts. On a GPU it places marks in the stream and waits only when it is read."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds: dict[str, float] = {}
        self._marks: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time the block, on the device."""
        if not hardware.is_gpu(self._device):
            started = time.perf_counter()
            yield
            self.add(name, time.perf_counter() - started)
            return
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        stream = torch.cuda.current_stream(self._device)  # not that of the first GPU, which may be another
        begin.record(stream)
        yield
        end.record(stream)
        self._marks.append((name, begin, end))

    def add(self, name: str, seconds: float) -> None:
        """Add seconds that were measured elsewhere."""
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds

    def read(self) -> dict[str, float]:
        """Seconds of each part since the last reading."""
        if self._marks:
            torch.cuda.synchronize(self._device)
            for name, begin, end in self._marks:
                self.add(name, begin.elapsed_time(end) / 1000)
        seconds, self._seconds, self._marks = self._seconds, {}, []
        return seconds
