"""Timing and memory for the benchmarks: alternating runs, medians, ratios within one process, and lower bounds.

Machines are shared and noisy: the ratio of two programs timed alternately is more reliable than either time. A lower
bound is the time of the same work at the rate of a program that does nothing else, such as one large matmul or copy.
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
    """The measured device."""
    return hardware.machine(DEVICE)


def alternate(
    programs: Mapping[str, Callable[[], object]], rounds: int, now: Callable[[], float] | None = None
) -> dict[str, list[float]]:
    """Seconds of each program, run alternately `rounds` times after one warm-up, by `now` or by default `clock`.

    Programs that use workers, threads of other libraries or the disk need wall-clock time, `time.perf_counter`: CPU
    time would miss or overcount them.
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
    """The program with PyTorch's default matmul precision."""

    def run() -> None:
        torch.set_float32_matmul_precision("highest")
        program()

    return run


def as_trained(program: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """The program with the matmul settings of training and evaluation."""

    def run() -> None:
        enable_fast_matmul(device)
        program()

    return run


def operations(program: Callable[[], object]) -> int:
    """Run a program once and count the FLOPs of its matmuls, recomputed ones included."""

    def attention(query: torch.Size, key: torch.Size, value: torch.Size, *_: object, **__: object) -> int:
        return sdpa_flop_count(query, key, value)

    def product(_: torch.Size, left: torch.Size, right: torch.Size, **__: object) -> int:
        return 2 * left.numel() * right[1]

    # The counter lacks CPU attention and in-place addmm.
    unknown = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention,
        torch.ops.aten.addmm_: product,
    }
    with FlopCounterMode(display=False, custom_mapping=unknown) as counter:
        program()
    return counter.get_total_flops()


def plain_product(device: torch.device, precision: str = "off") -> tuple[Callable[[], object], int]:
    """Matmuls of two large matrices in a precision of `--amp`, with the settings of training, and their FLOPs."""
    size = _PLAIN_SIZES[device.type]
    left, right = torch.randn(2, size, size, device=device).to(PRECISIONS[precision])

    def run() -> None:
        for _ in range(_PLAIN_TIMES):
            left @ right

    return as_trained(run, device), 2 * size**3 * _PLAIN_TIMES


def clock() -> float:
    """Seconds: CPU time with a single thread, which other programs disturb less, otherwise wall-clock time.

    Only for work done entirely by this thread, see `alternate`.
    """
    own = torch.get_num_threads() == 1 and not torch.cuda.is_available()
    return time.process_time() if own else time.perf_counter()


def compare(seconds: Mapping[str, list[float]], baseline: str) -> str:
    """Lines with the median of each program and the median of its pairwise ratios to the baseline."""
    lines = []
    for name, values in seconds.items():
        ratios = [base / own for base, own in zip(seconds[baseline], values, strict=True)]
        lines.append(
            f"{name:28s} median {statistics.median(values):8.3f} s ({min(values):.3f} to {max(values):.3f}), "
            f"{statistics.median(ratios):.2f} times as fast as {baseline}"
        )
    return "\n".join(lines)


def compare_to_bound(seconds: Mapping[str, list[float]], amounts: Mapping[str, float], bound: str, unit: str) -> str:
    """Lines with the rate of each program, and its lower bound: the time of its work at the rate of `bound`.

    Args:
        seconds: of each program, `bound` included.
        amounts: work of each program in `unit`.
        bound: the program that gives the lower bound.
        unit: of the amounts.

    >>> print(compare_to_bound({"ours": [4.0], "copy": [1.0]}, {"ours": 10.0, "copy": 5.0}, "copy", "GB"))
    ours                             10 GB at 2.5 GB/s; 2.000 s at the 5 GB/s of a copy, 50% of its time
    """
    rate = amounts[bound] / statistics.median(seconds[bound])
    lines = []
    for name, amount in amounts.items():
        if name == bound:
            continue
        fastest = [amount * own / amounts[bound] for own in seconds[bound]]
        share = statistics.median(base / own for base, own in zip(fastest, seconds[name], strict=True))
        lines.append(
            f"{name:28s} {amount:6.4g} {unit} at {amount / statistics.median(seconds[name]):.3g} {unit}/s; "
            f"{amount / rate:.3f} s at the {rate:.3g} {unit}/s of a {bound}, {share:.0%} of its time"
        )
    return "\n".join(lines)


def peak_memory_mb() -> float:
    """Peak memory in MiB since the start or the last reset: of tensors on a GPU, of the process on a CPU."""
    return hardware.memory_mb(DEVICE)


def reset_peak_memory() -> None:
    """Reset the peak to the current memory."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")
