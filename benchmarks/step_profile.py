"""Time of a training step by kind of operation, and the rate of its matmuls compared with one large matmul.

    python benchmarks/step.py --profile

On a CPU these are PyTorch operations with their self time; the rest of a step is spent between them. On a GPU they are
kernels, and the rest is idle time. REST are views, allocations and operations that only call others. The lower bound is
the time of a step's matmuls, those recomputed for the backward pass included, at the rate of a large matmul in the same
precision with the same number of threads. Times are wall-clock times; the profiler slows a step down a little.
"""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch._C._autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

from benchmarks.measure import DEVICE, PLAIN_PRODUCT, alternate, compare_to_bound, operations, plain_product

PRODUCTS = "matrix products"
OPTIMISER = "optimiser"
DROPOUT = "dropout"
NORMALISATION = "normalisation, softmax"
ROWS = "gathered, scattered rows"
DEFORMABLE = "deformable attention"
SELF_ATTENTION = "self-attention"
COPIES = "copies and joins"
ELEMENTWISE = "other element-wise, sums"
REST = "rest"

# Matched against enclosing functions first: optimizer and dropout consist of element-wise operations.
_AROUND = ((OPTIMISER, r"^Optimizer\."), (DROPOUT, r"(?i)dropout"))
# Names of PyTorch operations without 'aten::'; all others are ELEMENTWISE.
_OPERATIONS = (
    (PRODUCTS, r"(add)?(mm|mv|bmm)_?|baddbmm_?|dot|_addmm_activation|mkldnn_linear|"
        r"_scaled_dot_product_(?!attention_math).*|.*convolution.*"),
    (NORMALISATION, r".*layer_norm.*|_?(log_)?softmax.*|_softmax_backward_data"),
    (ROWS, r"_?index(?!_fill).*|gather.*|scatter.*|_?embedding.*|take.*|sort|searchsorted|_unsafe_index.*|"
        r"value_selecting_reduction_backward"),
    (COPIES, r"copy_|_to_copy|clone|cat|stack|fill_|zero_|constant_pad_nd|slice_backward|select_backward"),
    (REST, r"empty.*|resize_.*|_?reshape.*|view.*|_unsafe_view|.*transpose.*|t|permute|.*flatten|expand.*|as_strided.*|"
        r"slice|select|narrow|split.*|chunk|unbind|(un)?squeeze.*|detach.*|alias|linear|matmul|einsum|contiguous|to|"
        r"item|_local_scalar_dense|lift_fresh|result_type|zeros.*|ones.*|resolve_.*|set_.*|unsafe_.*|numpy_T|"
        r"_?scaled_dot_product_attention(_math)?|set_data|is_nonzero|pad|new_.*"),
)  # fmt: skip
# Custom autograd functions, by their own work.
_FUNCTIONS = (
    (DEFORMABLE, r"_DeformableAttention(Backward)?"),
    (SELF_ATTENTION, r"_SelfAttention(Backward)?"),
    (DROPOUT, r"_FeedForward(Backward)?"),
)
# Substrings of kernel names, first match; ROWS precede COPIES because rows copied by index match both.
_KERNELS = (
    (OPTIMISER, r"multi_tensor_apply"),
    (PRODUCTS, r"gemm|gemv|cutlass|cublas|nvjet|xmma|fmha|flash_|flash::|sdpa|splitk|dot_kernel|convolve"),
    (DROPOUT, r"dropout|masked_scale"),
    (NORMALISATION, r"layer_?norm|gammabeta|rowwisemoments|softmax"),
    (ROWS, r"index(?!fill)|gather|scatter|embedding|sort|searchsorted|segment|compute_grad_weight"),
    (COPIES, r"memcpy|memset|catarray|copy_kernel|fillfunctor"),
    (ELEMENTWISE, r"elementwise|reduce|scan|distribution|topk|pointwise|tensor_kernel"),
)


@dataclass
class Spent:
    """Seconds and number of calls of some operations or kernels."""

    seconds: float = 0.0
    calls: float = 0.0


def profiled(step: Callable[[], object], precision: str, rounds: int) -> str:
    """A table of the mean time of a step by kind over `rounds` steps, and the rate of its matmuls."""
    count = operations(step)
    plain, plain_count = plain_product(DEVICE, precision)
    seconds = alternate({"step": step, PLAIN_PRODUCT: plain}, rounds, time.perf_counter)
    spent, whole = _profile(step, rounds)
    idle = "device idle" if DEVICE.type == "cuda" else "between operations"
    in_products = spent[PRODUCTS].seconds if PRODUCTS in spent else float("nan")
    rate, reached = plain_count / statistics.median(seconds[PLAIN_PRODUCT]), count / in_products
    amounts = {"step": count / 1e9, PLAIN_PRODUCT: plain_count / 1e9}
    return "\n".join(
        [
            table(spent, whole, idle),
            f"{statistics.median(seconds['step']):.3f} s without the profiler, {whole:.3f} s with it",
            f"{in_products / whole:.0%} of the profiled step are products, at {reached / 1e9:.3g} GFLOP/s, "
            f"{reached / rate:.0%} of the rate of a plain product",
            compare_to_bound(seconds, amounts, PLAIN_PRODUCT, "GFLOP"),
        ]
    )


def table(spent: Mapping[str, Spent], whole: float, idle: str) -> str:
    """A line for each kind, the slowest first, and one for the rest of `whole` seconds.

    >>> print(table({PRODUCTS: Spent(1.5, 20), COPIES: Spent(0.5, 4)}, 2.5, "idle"))
    matrix products                 1.500 s    60.0%       20 calls
    copies and joins                0.500 s    20.0%        4 calls
    idle                            0.500 s    20.0%
    """
    kinds = sorted(spent.items(), key=lambda item: -item[1].seconds)
    lines = [
        f"{kind:28s} {own.seconds:8.3f} s {own.seconds / whole:8.1%} {own.calls:8.0f} calls" for kind, own in kinds
    ]
    left = whole - sum(own.seconds for own in spent.values())
    return "\n".join([*lines, f"{idle:28s} {left:8.3f} s {left / whole:8.1%}"])


def _profile(step: Callable[[], object], rounds: int) -> tuple[dict[str, Spent], float]:
    """Time of a step by kind, and its total seconds, under the profiler."""
    # Kernels only: recording CPU calls as well would slow the launches down.
    activities = [ProfilerActivity.CUDA if DEVICE.type == "cuda" else ProfilerActivity.CPU]
    with profile(activities=activities, acc_events=True):  # the first use initializes the profiler
        torch.ones(1, device=DEVICE).sum().item()
    with profile(activities=activities, acc_events=True) as recorded:
        started = time.perf_counter()
        for _ in range(rounds):
            step()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        whole = (time.perf_counter() - started) / rounds
    events = recorded.events()
    assert events is not None
    of_kind = kernels(events) if DEVICE.type == "cuda" else calls(events)
    spent: dict[str, Spent] = {}
    for kind, seconds, counts in of_kind:
        own = spent.setdefault(kind, Spent())
        own.seconds += seconds / rounds
        own.calls += counts / rounds
    return spent, whole


def calls(events: Iterable[FunctionEvent]) -> Iterator[tuple[str, float, bool]]:
    """Kind and self time in seconds of every CPU event, and whether it counts as a call."""
    for event in events:
        if event.device_type == DeviceType.CPU and not event.is_async:
            own = kind_of_operation([event.name])
            kind = kind_of_operation(list(_names(event)))
            yield kind, event.self_cpu_time_total / 1e6, own != REST


def kernels(events: Iterable[FunctionEvent]) -> Iterator[tuple[str, float, bool]]:
    """Kind and seconds of every kernel; time in which two overlap counts for the first."""
    own = [event for event in events if event.device_type == DeviceType.CUDA and not _is_mark(event)]
    busy_until = 0.0
    for event in sorted(own, key=lambda event: event.time_range.start):
        begin, busy_until = max(event.time_range.start, busy_until), max(event.time_range.end, busy_until)
        yield kind_of_kernel(event.name), max(event.time_range.end - begin, 0.0) / 1e6, True


def _is_mark(event: FunctionEvent) -> bool:
    """Whether the event is an annotation or a wait rather than work."""
    named = event.is_user_annotation or event.name.startswith(("Optimizer.", "ProfilerStep"))
    return bool(named or event.name.endswith(" Sync"))


def _names(event: FunctionEvent) -> Iterator[str]:
    around: FunctionEvent | None = event
    while around is not None:
        yield around.name
        around = around.cpu_parent


def kind_of_operation(names: list[str]) -> str:
    """The kind of an operation from its name and those of the enclosing functions, innermost first.

    >>> kind_of_operation(["aten::addmm", "aten::linear"]), kind_of_operation(["aten::mul", "_ReluDropoutBackward"])
    ('matrix products', 'dropout')
    """
    for kind, pattern in _AROUND:
        if any(re.search(pattern, name) for name in names):
            return kind
    bare = names[0].removeprefix("aten::")
    known, other = (_FUNCTIONS, REST) if bare == names[0] else (_OPERATIONS, ELEMENTWISE)
    return next((kind for kind, pattern in known if re.fullmatch(pattern, bare)), other)


def kind_of_kernel(name: str) -> str:
    """The kind of a kernel from its name.

    >>> kind_of_kernel("sm90_xmma_gemm_f32f32_tf32f32_f32_nn_n_tilesize128x128x32"), kind_of_kernel("Memcpy HtoD")
    ('matrix products', 'copies and joins')
    """
    return next((kind for kind, pattern in _KERNELS if re.search(pattern, name, re.IGNORECASE)), REST)
