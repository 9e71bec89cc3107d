"""The machine that a program runs on: its processor, and the memory that the program has taken."""

from __future__ import annotations

import platform
from pathlib import Path

import torch


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
