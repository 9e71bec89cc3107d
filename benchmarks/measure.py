"""Timing and memory for the benchmarks: alternating runs, medians, ratios within one process.

Machines are shared and noisy, so that a ratio of two things timed in turn says more than either time.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch


def machine() -> str:
    """The device that is measured, in words."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    names = [line.split(":")[1].strip() for line in _cpu_info() if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} threads"


def _cpu_info() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def alternate(programs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each program, run in turn `rounds` times after one warm-up each."""
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for round_ in range(rounds + 1):
        for name, program in programs.items():
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            started = time.perf_counter()
            program()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if round_:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def compare(seconds: Mapping[str, list[float]], baseline: str) -> str:
    """Lines of medians and of the ratios to the baseline, pair by pair."""
    lines = []
    for name, values in seconds.items():
        ratios = [base / own for base, own in zip(seconds[baseline], values, strict=True)]
        lines.append(
            f"{name:28s} median {statistics.median(values):8.3f} s ({min(values):.3f} to {max(values):.3f}), "
            f"{statistics.median(ratios):.2f} times as fast as {baseline}"
        )
    return "\n".join(lines)


def peak_memory_mb() -> float:
    """Largest memory that this process, or on a GPU its tensors, have held so far, in MiB."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status").read_text()
    return float(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024
