"""Dot products of queries with the best frames of each video, without a gradient for all other frames.

A step reads two of the dot products of a query with the frames of a video. Their gradients are sums over so few rows
that adding them up takes a fraction of the time of the two matrix products of a dense gradient.

Letters: Q queries, B videos, N frames, D width, X = 2 choices of the best frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from method.data.ragged import Layout
from method.ops.cpu import kernels
from method.ops.cpu.threads import as_array, run_in_threads


def best_dots(frames_ND: Tensor, norms_N: Tensor, queries_QD: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """See `method.ops.best_dots`."""
    dots_XBQ, frame_XBQ = _BestDots.apply(frames_ND, norms_N, queries_QD, layout)
    return dots_XBQ, frame_XBQ


class _BestDots(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, frames_ND: Tensor, norms_N: Tensor, queries_QD: Tensor, layout: Layout
    ) -> tuple[Tensor, Tensor]:
        dots_NQ = (frames_ND @ queries_QD.t()).float()
        frame_XBQ = torch.empty(2, len(layout.lengths), len(queries_QD), dtype=torch.int32)
        dots_XBQ = torch.empty(frame_XBQ.shape)
        read = [as_array(tensor) for tensor in (dots_NQ, norms_N.float().contiguous(), layout.starts_B, layout.valid_B)]
        written = (as_array(frame_XBQ), as_array(dots_XBQ))
        run_in_threads(lambda start, stop: kernels.best_dots(*read, start, stop, *written), layout.valid, min_size=64)
        ctx.save_for_backward(frames_ND, queries_QD, frame_XBQ)
        ctx.layout = layout
        ctx.mark_non_differentiable(frame_XBQ)
        return dots_XBQ, frame_XBQ

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        frames_ND, queries_QD, frame_XBQ = ctx.saved_tensors
        choices = (as_array(frame_XBQ), as_array(grads[0].float().contiguous()), as_array(ctx.layout.starts_B))
        kernel, lengths = kernels.best_dots_backward_frames, ctx.layout.lengths
        grad_frames_ND = _add(kernel, queries_QD, choices, lengths, frames_ND) if ctx.needs_input_grad[0] else None
        kernel, lengths = kernels.best_dots_backward_queries, [len(lengths)] * len(queries_QD)
        grad_queries_QD = _add(kernel, frames_ND, choices, lengths, queries_QD) if ctx.needs_input_grad[2] else None
        return grad_frames_ND, None, grad_queries_QD, None


def _add(kernel: Any, rows: Tensor, choices: tuple[Any, ...], sizes: Sequence[int], like: Tensor) -> Tensor:
    """The sums of multiples of rows that a kernel adds up, in the shape and precision of `like`."""
    read, sums = as_array(rows.float().contiguous()), torch.zeros(like.shape)
    run_in_threads(lambda start, stop: kernel(read, *choices, start, stop, as_array(sums)), sizes, min_size=64)
    return sums.to(like.dtype)
