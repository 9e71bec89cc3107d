"""The machine that a program runs on: how it is best used, what it is called, and the memory that was taken of it.

A GPU works through a queue. A program that asks it for a number waits until the queue is empty, and the GPU then waits
for the program: on the way of a training step nothing is asked for, and what is sent is sent by `sent`.
"""

from __future__ import annotations

import platform
from pathlib import Path

import torch
from torch import Tensor


def is_gpu(device: torch.device) -> bool:
    """Whether a device has memory of its own and works through a queue while the program goes on."""
    return device.type == "cuda"


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device, where it arrives in the order of the queue; the program does not wait for that.

    From memory that is not page-locked the copy of more than 64 KB would wait for the work that is under way.
    """
    if is_gpu(device) and not is_gpu(tensor.device):
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class Arriving:
    """Numbers on their way from a device, whose queue the program can go on to fill before it reads them."""

    def __init__(self, numbers: Tensor) -> None:
        self._numbers = numbers.detach().to("cpu", non_blocking=True)  # into page-locked memory
        self._arrived: torch.cuda.Event | None = None
        if is_gpu(numbers.device):
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(numbers.device))

    def read(self) -> list[float]:
        """The numbers; waits for what they are made from, and for nothing that was handed out later."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._numbers.tolist()


def machine(device: torch.device) -> str:
    """The hardware that times hold for."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = processor("model name") or platform.processor() or platform.machine()
    threads = torch.get_num_threads()
    return f"{name}, {threads} thread{'s' if threads > 1 else ''}"


def processor(field: str) -> str:
    """What Linux says of the processor under a field of /proc/cpuinfo; nothing elsewhere."""
    description = Path("/proc/cpuinfo")
    lines = description.read_text("utf-8", "replace").splitlines() if description.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(field)), "")


def memory_mb(device: torch.device) -> float:
    """Largest memory held so far, in MiB: of tensors on a GPU, of the process elsewhere (0 where it cannot be told)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    if not status.exists():
        return 0.0
    peak = next((line for line in status.read_text().splitlines() if line.startswith("VmHWM")), "VmHWM: 0")
    return float(peak.split()[1]) / 1024
