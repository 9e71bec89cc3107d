"""Tensors, and where sequences lie in them, as compiled kernels take them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def readable(tensor: Tensor) -> Tensor:
    """The same numbers as a kernel reads them, in memory without gaps: floats, or halves that are the first of one."""
    return (tensor.float() if tensor.dtype == torch.float16 else tensor).contiguous()


def as_array(tensor: Tensor) -> np.ndarray[Any, Any]:
    """The same memory as an array; of halves the bits, as whole numbers, since NumPy does not know all of them."""
    tensor = tensor.detach()
    halves = tensor.dtype in (torch.bfloat16, torch.float16)
    array: np.ndarray[Any, Any] = (tensor.view(torch.int16) if halves else tensor).numpy()
    return array


def firsts(lengths: Sequence[int]) -> np.ndarray[Any, Any]:
    """Where the rows of each sequence begin, and the end of the last."""
    return np.cumsum([0, *lengths])
