"""Self-attention within sequences, bucketed by length: sequences of similar length are padded and multiplied together.

Queries, keys, values, logits and attention weights of a bucket lie in memory that the next bucket reuses. Nothing of
them is stored for the backward pass, which computes them again.

Letters: N rows, H heads, D width, d width of a head, E channels of a row; b sequences of a bucket, M rows of the
longest or `MANY_ROWS`, S = bH pairs of a sequence and a head, X tensors that share a buffer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from method.data.ragged import MANY_ROWS, Layout
from method.ops.cpu import kernels
from method.ops.cpu.dropout import DropoutSeed
from method.ops.cpu.threads import as_array, run_in_threads
from method.ops.reference import gaussian_windows

ROWS_PER_BUCKET = 2048


def self_attention(projected_NE: Tensor, layout: Layout, heads: int, probability: float, sigma: float | None) -> Tensor:
    """Attention of each row over the valid rows of its sequence, (N, D); E = 3D: query, key, value."""
    seed = DropoutSeed.draw(probability)
    attended_ND: Tensor = _SelfAttention.apply(projected_NE.contiguous(), layout, heads, seed, sigma)
    return attended_ND


class _SelfAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, projected_NE: Tensor, layout: Layout, heads: int, seed: DropoutSeed, sigma: float | None
    ) -> Tensor:
        ctx.save_for_backward(projected_NE)
        ctx.layout, ctx.heads, ctx.seed, ctx.sigma = layout, heads, seed, sigma
        attended_ND = projected_NE.new_empty(len(projected_NE), projected_NE.shape[1] // 3)
        for bucket, rows_XSMd, squares_XSMM in _with_buffers(projected_NE, layout, heads, 4, 1):
            (query, key, value, attended), (attn,) = rows_XSMd, squares_XSMM
            bucket.split_heads(projected_NE, rows_XSMd[:3])
            torch.bmm(query, key.mT, out=attn)  # logits, which the softmax replaces
            bucket.multiply_windows(sigma, attn)
            bucket.softmax_dropout(query.shape[-1] ** -0.5, seed, attn)
            torch.bmm(attn, value, out=attended)
            bucket.merge_heads(rows_XSMd[3:], attended_ND)
        return attended_ND

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (projected_NE,) = ctx.saved_tensors
        grad_attended_ND, grad_projected_NE = grads[0].contiguous(), torch.empty_like(projected_NE)
        for bucket, rows_XSMd, squares_XSMM in _with_buffers(projected_NE, ctx.layout, ctx.heads, 7, 2):
            query, key, value, grad_attended, grad_query, grad_key, grad_value = rows_XSMd
            attn, grad_logits = squares_XSMM
            bucket.split_heads(projected_NE, rows_XSMd[:3])
            bucket.split_heads(grad_attended_ND, rows_XSMd[3:4])
            torch.bmm(query, key.mT, out=attn)
            bucket.multiply_windows(ctx.sigma, attn)
            torch.bmm(grad_attended, value.mT, out=grad_logits)  # of the weights, which the next line replaces
            bucket.softmax_dropout(query.shape[-1] ** -0.5, ctx.seed, attn, grad_logits)
            bucket.multiply_windows(ctx.sigma, grad_logits)
            torch.bmm(attn.mT, grad_attended, out=grad_value)
            torch.bmm(grad_logits, key, out=grad_query)
            torch.bmm(grad_logits.mT, query, out=grad_key)
            bucket.merge_heads(rows_XSMd[4:], grad_projected_NE)
        return grad_projected_NE, None, None, None, None


@dataclass(frozen=True)
class _Bucket:
    """Sequences of similar length: first row, rows and valid rows of each."""

    starts_b: np.ndarray[Any, Any]
    lengths_b: np.ndarray[Any, Any]
    valid_b: np.ndarray[Any, Any]
    heads: int

    @property
    def longest(self) -> int:
        """M."""
        return max(MANY_ROWS, int(self.lengths_b.max()))

    @property
    def pairs(self) -> int:
        """S."""
        return len(self.lengths_b) * self.heads

    def split_heads(self, rows_NE: Tensor, heads_XSMd: Tensor) -> None:
        """Copy each head of the rows into a padded matrix of its own."""
        self._run(kernels.split_heads, as_array(rows_NE), as_array(heads_XSMd.unflatten(1, (-1, self.heads))))

    def merge_heads(self, heads_XSMd: Tensor, rows_NE: Tensor) -> None:
        """The inverse of `split_heads`."""
        self._run(kernels.merge_heads, as_array(heads_XSMd.unflatten(1, (-1, self.heads))), as_array(rows_NE))

    def multiply_windows(self, sigma: float | None, square_SMM: Tensor) -> None:
        """Multiply logits, or their gradient, by the Gaussian windows; None: by nothing."""
        if sigma is not None:
            window_bMM = gaussian_windows(torch.from_numpy(self.valid_b), self.longest, sigma).to(square_SMM.dtype)
            square_SMM.unflatten(0, (-1, self.heads)).mul_(window_bMM[:, None])

    def softmax_dropout(self, factor: float, seed: DropoutSeed, *squares_SMM: Tensor) -> None:
        """Replace logits by dropout(softmax(factor * logits)), and its gradient, if given, by that of the logits."""
        # Kernels support float32 and bf16 only.
        inputs = [square.float() if square.dtype == torch.float16 else square for square in squares_SMM]
        kernel = kernels.softmax_dropout if len(inputs) == 1 else kernels.softmax_dropout_backward
        arrays = [as_array(square.unflatten(0, (-1, self.heads))) for square in inputs]
        self._run(kernel, *arrays, factor, seed.scale, seed.mask)
        for square, written in zip(squares_SMM, inputs, strict=True):
            if written is not square:
                square.copy_(written)

    def _run(self, kernel: Any, *arguments: Any) -> None:
        bucket = (self.starts_b, self.lengths_b, self.valid_b)
        run_in_threads(
            lambda start, stop: kernel(*arguments, bucket, start, stop), self.lengths_b.tolist(), min_size=64
        )


def _with_buffers(
    rows_NE: Tensor, layout: Layout, heads: int, rows: int, squares: int
) -> Iterator[tuple[_Bucket, Tensor, Tensor]]:
    """All buckets, each with so many matrices of rows (X, S, M, d) and of row pairs (X, S, M, M) in shared memory."""
    buckets = _buckets(layout, heads)
    width = rows_NE.shape[1] // 3 // heads
    row_buffer = rows_NE.new_empty(rows * max((b.pairs * b.longest * width for b in buckets), default=0))
    square_buffer = rows_NE.new_empty(squares * max((b.pairs * b.longest**2 for b in buckets), default=0))
    for bucket in buckets:
        row_shape = (bucket.pairs, bucket.longest, width)
        square_shape = (bucket.pairs, bucket.longest, bucket.longest)
        yield (
            bucket,
            row_buffer[: rows * math.prod(row_shape)].view(rows, *row_shape),
            square_buffer[: squares * math.prod(square_shape)].view(squares, *square_shape),
        )


def _buckets(layout: Layout, heads: int) -> list[_Bucket]:
    """Sequences sorted by length, with at most ROWS_PER_BUCKET padded rows a bucket (or one sequence)."""
    buckets: list[list[int]] = []
    for sequence in sorted(range(len(layout.lengths)), key=lambda index: -layout.lengths[index]):
        if not buckets or (len(buckets[-1]) + 1) * layout.lengths[buckets[-1][0]] > ROWS_PER_BUCKET:
            buckets.append([])
        buckets[-1].append(sequence)
    lengths_B, valid_B = np.array(layout.lengths), np.array(layout.valid)
    starts_B = lengths_B.cumsum() - lengths_B
    return [_Bucket(starts_B[bucket], lengths_B[bucket], valid_B[bucket], heads) for bucket in buckets]
