"""Depthwise convolution within sequences and GELU of it, on a CPU: each row is read and written once.

Letters: N rows that are read, n rows that are written, D width, k taps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from method.data.ragged import Layout, Ragged
from method.model.arrays import as_array, firsts, readable
from method.model.threads import in_threads


def gelu_of_convolution(rows: Ragged, weight_kD: Tensor, bias_D: Tensor) -> Tensor:
    """GELU of the convolution over all rows of each sequence, at its real rows, (n, D); k is odd."""
    rows.layout.expect_rows(rows.values)
    convolved_nD: Tensor = _Convolution.apply(rows.values, weight_kD, bias_D, rows.layout)
    return convolved_nD


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_ND: Tensor, weight_kD: Tensor, bias_D: Tensor, layout: Layout) -> Tensor:
        from method.model import kernels  # here: to load it takes half a second, and a GPU does not need it

        ctx.save_for_backward(rows_ND, weight_kD, bias_D)
        ctx.layout = layout
        rows_ND = readable(rows_ND)
        written_nD = rows_ND.new_empty(sum(layout.real), rows_ND.shape[1])
        _run(kernels.convolve, layout, rows_ND, written_nD, weight_kD, bias_D)
        return written_nD

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        from method.model import kernels

        rows_ND, weight_kD, bias_D = ctx.saved_tensors
        read_ND = readable(rows_ND)
        of_rows_ND = torch.empty_like(read_ND, dtype=torch.float32)
        of_learnt_BXD = of_rows_ND.new_empty(len(ctx.layout.lengths), len(weight_kD) + 1, weight_kD.shape[1])
        of_written_nD = gradients[0].to(read_ND.dtype).contiguous()
        found = (as_array(of_rows_ND), as_array(of_learnt_BXD))
        _run(kernels.pass_through_convolution, ctx.layout, read_ND, of_written_nD, weight_kD, bias_D, found)
        of_learnt_XD = of_learnt_BXD.sum(0)
        return of_rows_ND.to(rows_ND.dtype), of_learnt_XD[:-1], of_learnt_XD[-1], None


def _run(
    kernel: Any, layout: Layout, rows_ND: Tensor, written_nD: Tensor, weight_kD: Tensor, bias_D: Tensor, *rest: Any
) -> None:
    arrays = [as_array(tensor) for tensor in (rows_ND, written_nD, weight_kD.contiguous(), bias_D)]
    places = (firsts(layout.lengths), firsts(layout.real))
    in_threads(lambda first, end: kernel(*arrays, *places, first, end, *rest), layout.lengths, worth=64)
