"""Timing and memory for the benchmarks: alternating runs, medians, ratios within one process, and floors beside them.

Machines are shared and noisy, so that a ratio of two things timed in turn says more than either time. A floor is the
time that the same work takes at the rate of something that does nothing else: a plain product, a plain copy.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from method.ops.precision import PRECISIONS, enable_fast_matmul
from method.runtime import hardware

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PLAIN_PRODUCT = "plain product"
_PLAIN_SIZES, _PLAIN_TIMES = {"cpu": 2048, "cuda": 8192}, 4


def machine() -> str:
    """The device that is measured, in words."""
    return hardware.machine(DEVICE)


def alternate(
    programs: Mapping[str, Callable[[], object]], rounds: int, now: Callable[[], float] | None = None
) -> dict[str, list[float]]:
    """Seconds of each program, run in turn `rounds` times after one warm-up each, by `now` or else `clock`.

    A program that workers, threads of other libraries or a disk work for needs `time.perf_counter`, the clock on the
    wall: by that of one processor they take no time, or too much.
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
        enable_fast_matmul(device)
        program()

    return run


def operations(program: Callable[[], object]) -> int:
    """Run a program once: the floating-point operations of its matrix products, with those of what is recomputed."""

    def attention(query: torch.Size, key: torch.Size, value: torch.Size, *_: object, **__: object) -> int:
        return sdpa_flop_count(query, key, value)

    def product(_: torch.Size, left: torch.Size, right: torch.Size, **__: object) -> int:
        return 2 * left.numel() * right[1]

    # Of attention the counter knows that of GPUs alone, and no products that are added to a sum where it is.
    unknown = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention,
        torch.ops.aten.addmm_: product,
    }
    with FlopCounterMode(display=False, custom_mapping=unknown) as counter:
        program()
    return counter.get_total_flops()


def plain_product(device: torch.device, precision: str = "off") -> tuple[Callable[[], object], int]:
    """Products of two large matrices in a precision of `--amp`, as training computes them, and their operations."""
    size = _PLAIN_SIZES[device.type]
    left, right = torch.randn(2, size, size, device=device).to(PRECISIONS[precision])

    def run() -> None:
        for _ in range(_PLAIN_TIMES):
            left @ right

    return as_trained(run, device), 2 * size**3 * _PLAIN_TIMES


def clock() -> float:
    """Seconds; with one thread those of its processor, which other programs on the machine disturb less.

    Only for what this thread computes by itself; see `alternate`.
    """
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


def beside_floor(seconds: Mapping[str, list[float]], amounts: Mapping[str, float], floor: str, unit: str) -> str:
    """Lines of the rates, and of the share of its time that each would take at the rate of the floor, pair by pair.

    amounts: what each program works through, the floor's included, in `unit`.

    >>> print(beside_floor({"ours": [4.0], "copy": [1.0]}, {"ours": 10.0, "copy": 5.0}, "copy", "GB"))
    ours                             10 GB at 2.5 GB/s; 2.000 s at the 5 GB/s of a copy, 50% of its time
    """
    rate = amounts[floor] / statistics.median(seconds[floor])
    lines = []
    for name, amount in amounts.items():
        if name == floor:
            continue
        least = [amount * own / amounts[floor] for own in seconds[floor]]
        share = statistics.median(base / own for base, own in zip(least, seconds[name], strict=True))
        lines.append(
            f"{name:28s} {amount:6.4g} {unit} at {amount / statistics.median(seconds[name]):.3g} {unit}/s; "
            f"{amount / rate:.3f} s at the {rate:.3g} {unit}/s of a {floor}, {share:.0%} of its time"
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
