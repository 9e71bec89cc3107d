"""Choice of the device, asynchronous copies, and peak memory.

CUDA launches are asynchronous and reading a number is a sync: it waits for all queued kernels and then leaves the GPU
idle. A training step therefore reads nothing from the device, and copies to it with `to_device_async`.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from method.runtime.errors import InputError


def choose_device(
    device: int | None, device_ids: Sequence[int] | None = None, local_rank: int | None = None
) -> torch.device:
    """The device that --device or --device_ids selects; under torchrun, the GPU of the process with this local rank.

    InputError when the machine has no such GPU, or when a flag selects a device under torchrun.
    """
    gpus = torch.cuda.device_count()
    if local_rank is not None:
        for flag, value in (("device", device), ("device_ids", device_ids)):
            if value is not None:
                raise InputError(
                    f"--{flag} {value}: torchrun gives each process its own GPU, or the CPU where there is none; "
                    "CUDA_VISIBLE_DEVICES chooses among the GPUs"
                )
        return torch.device("cuda", local_rank) if gpus else torch.device("cpu")
    if device is None:
        device = (device_ids or [0])[0] if gpus else -1
    if device < 0:
        return torch.device("cpu")
    if device >= gpus:
        raise InputError(f"--device {device}: this machine has {gpus} usable GPUs; -1 is the CPU")
    return torch.device("cuda", device)


def is_gpu(device: torch.device) -> bool:
    """Whether a device has its own memory and executes asynchronously."""
    return device.type == "cuda"


def to_device_async(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device without a host-device sync; the copy is ordered with the kernels of the stream.

    It goes through pinned memory: a copy of more than 64 KB from pageable memory would wait for the queued kernels.
    """
    if is_gpu(device) and not is_gpu(tensor.device):
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class AsyncScalars:
    """Numbers copied from a device in the background; more kernels can be launched before they are read."""

    def __init__(self, numbers: Tensor) -> None:
        self._numbers = numbers.detach().to("cpu", non_blocking=True)  # into pinned memory
        self._copied: torch.cuda.Event | None = None
        if is_gpu(numbers.device):
            self._copied = torch.cuda.Event()
            self._copied.record(torch.cuda.current_stream(numbers.device))

    def read(self) -> list[float]:
        """The numbers; waits only for kernels launched before the copy."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._numbers.tolist()


def machine(device: torch.device) -> str:
    """The device as timings name it: the GPU, or the CPU and its number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = processor("model name") or platform.processor() or platform.machine()
    threads = torch.get_num_threads()
    return f"{name}, {threads} thread{'s' if threads > 1 else ''}"


def processor(field: str) -> str:
    """The first value of a field of /proc/cpuinfo; "" outside Linux."""
    description = Path("/proc/cpuinfo")
    lines = description.read_text("utf-8", "replace").splitlines() if description.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(field)), "")


def memory_mb(device: torch.device) -> float:
    """Peak memory so far in MiB: of tensors on a GPU, otherwise of the process (0 where the system does not tell)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    if not status.exists():
        return 0.0
    peak = next((line for line in status.read_text().splitlines() if line.startswith("VmHWM")), "VmHWM: 0")
    return float(peak.split()[1]) / 1024
