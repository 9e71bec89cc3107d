"""Half precision where it is asked for, what `--amp` and `--eval_amp` mean; and single precision as fast as it goes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch

from method.runtime.hardware import processor

PRECISIONS = {"off": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# The fastest products of float32 numbers that lose nothing of numbers which fit into half precision: 'high' keeps the
# 10 bits behind the point of fp16, 'medium' the 7 of bf16. Sums and results are float32 in all of them.
_PRODUCTS = {torch.bfloat16: "medium", torch.float16: "high"}


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Matrix products in a half precision, 'bf16' or 'fp16', as far as PyTorch holds that for safe; none with 'off'."""
    half = PRECISIONS[precision] if precision != "off" else torch.bfloat16
    return torch.autocast(device.type, half, enabled=precision != "off")


@contextlib.contextmanager
def products_of(kept: torch.dtype) -> Iterator[None]:
    """Products of float32 numbers that were rounded to `kept`: exact, and where the hardware can, in half the time."""
    if kept not in _PRODUCTS:
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(_PRODUCTS[kept])
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def use_quickest_products(device: torch.device) -> None:
    """From here on, let PyTorch compute float32 products on an AMD processor in half the time, as exactly as before.

    Its default there, MKL, leaves half of such a processor's vector units idle. 'medium' makes it take oneDNN, which
    uses all of them, and may round to bf16 where the hardware has units for that; whether it does is tried, and then
    the default stays. On all processors oneDNN then keeps the programs that it made for the last 128 shapes, not 1,024:
    of the batches of real videos hardly two have a shape in common.
    """
    if device.type != "cpu":
        return
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")  # read at the first product
    if processor("vendor_id") != "AuthenticAMD":
        return
    if torch.get_float32_matmul_precision() != "highest":
        return
    torch.set_float32_matmul_precision("medium")
    if not _products_are_exact():
        torch.set_float32_matmul_precision("highest")


def _products_are_exact() -> bool:
    left, right = torch.randn(2, 384, 384, generator=torch.Generator().manual_seed(0))
    exact = left.double() @ right.double()
    return bool((left @ right - exact).norm() < 1e-5 * exact.norm())  # bf16 would be off by a thousandth
