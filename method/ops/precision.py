"""Autocast for `--amp` and `--eval_amp`, and the fastest float32 matrix products."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch

from method.runtime.hardware import processor

PRECISIONS = {"off": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# The fastest float32 products that are exact for inputs rounded to half precision: 'high' keeps the 10 mantissa bits of
# fp16, 'medium' the 7 of bf16. Both accumulate in float32.
_MATMUL_PRECISION = {torch.bfloat16: "medium", torch.float16: "high"}


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Autocast to 'bf16' or 'fp16'; disabled with 'off'."""
    half = PRECISIONS[precision] if precision != "off" else torch.bfloat16
    return torch.autocast(device.type, half, enabled=precision != "off")


def cpu_product_dtype() -> torch.dtype:
    """The precision of matrix products on a CPU: that of autocast, float32 without it."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32


@contextlib.contextmanager
def matmul_precision(dtype: torch.dtype) -> Iterator[None]:
    """The fastest exact products of float32 numbers that were rounded to `dtype`; a setting of the whole process."""
    precision = _MATMUL_PRECISION.get(dtype)
    if precision is None:
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def enable_fast_matmul(device: torch.device) -> None:
    """Let PyTorch use oneDNN for float32 products on AMD processors, which takes half the time of its default, MKL.

    MKL leaves half of the vector units of such a processor idle. The setting for oneDNN, 'medium', permits bf16 where
    the hardware supports it, so the accuracy is checked once; if bf16 would be used, the default is kept. On all
    processors, oneDNN then caches the primitives of 128 shapes instead of 1,024, since hardly two batches of real
    videos share a shape.
    """
    if device.type != "cpu":
        return
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")  # read at the first product
    if processor("vendor_id") != "AuthenticAMD":
        return
    if torch.get_float32_matmul_precision() != "highest":
        return
    torch.set_float32_matmul_precision("medium")
    if not _is_exact():
        torch.set_float32_matmul_precision("highest")


def _is_exact() -> bool:
    left, right = torch.randn(2, 384, 384, generator=torch.Generator().manual_seed(0))
    exact = left.double() @ right.double()
    return bool((left @ right - exact).norm() < 1e-5 * exact.norm())  # bf16 is off by a thousandth
