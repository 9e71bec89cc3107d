"""Timing and memory for the benchmarks: alternating runs, medians, ratios within one process.

Machines are shared and noisy, so that a ratio of two things timed in turn says more than either time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from method import hardware
from method.model.precision import use_quickest_products

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def machine() -> str:
    """The device that is measured, in words."""
    return hardware.machine(DEVICE)


def alternate(
    programs: Mapping[str, Callable[[], object]], rounds: int, now: Callable[[], float] | None = None
) -> dict[str, list[float]]:
    """Seconds of each program, run in turn `rounds` times after one warm-up each, by `now` or else `clock`.

    What other processes or a disk do for a program takes no time by the clock of one processor.
    """
    now = now or clock
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for round_ in range(rounds + 1):
        for name, program in programs.items():
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            started = now()
            program()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if round_:
                seconds[name].append(now() - started)
    return seconds


def as_published(program: Callable[[], object]) -> Callable[[], object]:
    """The program with products as PyTorch computes them by itself."""

    def run() -> None:
        torch.set_float32_matmul_precision("highest")
        program()

    return run


def as_trained(program: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """The program with products as training and evaluation let PyTorch compute them."""

    def run() -> None:
        use_quickest_products(device)
        program()

    return run


def clock() -> float:
    """Seconds; with one thread those of its processor, which other programs on the machine disturb less."""
    own = torch.get_num_threads() == 1 and not torch.cuda.is_available()
    return time.process_time() if own else time.perf_counter()


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
    """Largest memory that this process, or on a GPU its tensors, have held so far or since a reset, in MiB."""
    return hardware.memory_mb(DEVICE)


def reset_peak_memory() -> None:
    """Let the peak begin with what is held now."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")
