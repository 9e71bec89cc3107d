"""Self-attention within sequences on a CPU: some sequences of similar length at a time, side by side.

What is made of their projections, by head, their logits and what dropout leaves of the softmax, lies in memory that the
next sequences use again. Nothing of it is kept for the backward pass, which makes it once more.

Letters: N rows, H heads, D width, d width of a head, E numbers of a row; b sequences of a box, M rows of the longest,
G pairs of a sequence and a head, X parts of a row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from method.data.ragged import Layout
from method.ops.cpu.arrays import as_array
from method.ops.cpu.dropout import Draws
from method.ops.cpu.threads import in_threads

ROWS_OF_A_BOX = 2048


def attend_within(projected_NE: Tensor, layout: Layout, heads: int, probability: float) -> Tensor:
    """Attention of each row over the real rows of its sequence, (N, D).

    Args:
        projected_NE: queries, keys and values side by side, (N, 3D).
        probability: of dropout, of weights after their softmax.
    """
    layout.expect_rows(projected_NE)
    attended_ND: Tensor = _SequenceAttention.apply(projected_NE.contiguous(), layout, heads, Draws.of(probability))
    return attended_ND


class _SequenceAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, projected_NE: Tensor, layout: Layout, heads: int, draws: Draws) -> Tensor:
        ctx.save_for_backward(projected_NE)
        ctx.layout, ctx.heads, ctx.draws = layout, heads, draws
        attended_ND = projected_NE.new_empty(len(projected_NE), projected_NE.shape[1] // 3)
        for box, made_XGMd, squares_XGMM in _in_boxes(projected_NE, layout, heads, 4, 1):
            (query, key, value, attended), (weights,) = made_XGMd, squares_XGMM
            box.spread(projected_NE, made_XGMd[:3])
            torch.bmm(query, key.mT, out=weights)  # logits, until they are softened
            box.soften(query.shape[-1] ** -0.5, draws, weights)
            torch.bmm(weights, value, out=attended)
            box.collect(made_XGMd[3:], attended_ND)
        return attended_ND

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (projected_NE,) = ctx.saved_tensors
        of_attended_ND, of_projected_NE = gradients[0].contiguous(), torch.empty_like(projected_NE)
        for box, made_XGMd, squares_XGMM in _in_boxes(projected_NE, ctx.layout, ctx.heads, 7, 2):
            query, key, value, of_attended, of_query, of_key, of_value = made_XGMd
            weights, of_logits = squares_XGMM
            box.spread(projected_NE, made_XGMd[:3])
            box.spread(of_attended_ND, made_XGMd[3:4])
            torch.bmm(query, key.mT, out=weights)
            torch.bmm(of_attended, value.mT, out=of_logits)  # of the weights, until these are known
            box.soften(query.shape[-1] ** -0.5, ctx.draws, weights, of_logits)
            torch.bmm(weights.mT, of_attended, out=of_value)
            torch.bmm(of_logits, key, out=of_query)
            torch.bmm(of_logits.mT, query, out=of_key)
            box.collect(made_XGMd[4:], of_projected_NE)
        return of_projected_NE, None, None, None


@dataclass(frozen=True)
class _Box:
    """Some sequences side by side, of which each of some heads takes its part.

    firsts_b, lengths_b, real_b: the first row of each sequence, its rows and its real rows.
    """

    firsts_b: np.ndarray[Any, Any]
    lengths_b: np.ndarray[Any, Any]
    real_b: np.ndarray[Any, Any]
    heads: int

    @property
    def longest(self) -> int:
        """M."""
        return int(self.lengths_b.max())

    @property
    def pairs(self) -> int:
        """G."""
        return len(self.lengths_b) * self.heads

    def spread(self, rows_NE: Tensor, made_XGMd: Tensor) -> None:
        """Write each head's part of the rows by itself, and zeros behind the end of a sequence."""
        from method.ops.cpu import kernels  # here: to load it takes half a second, and a GPU does not need it

        self._run(kernels.spread, as_array(rows_NE), as_array(made_XGMd.unflatten(1, (-1, self.heads))))

    def collect(self, made_XGMd: Tensor, rows_NE: Tensor) -> None:
        """The inverse of `spread`."""
        from method.ops.cpu import kernels

        self._run(kernels.collect, as_array(made_XGMd.unflatten(1, (-1, self.heads))), as_array(rows_NE))

    def soften(self, factor: float, draws: Draws, *squares_GMM: Tensor) -> None:
        """Let what dropout leaves of the softmax of `factor` times the first take its place.

        Gradients of that, if they come second, become those of what was there.
        """
        from method.ops.cpu import kernels

        # Kernels compute with floats, and with those of which bfloat16 is the first half.
        kept = [square.float() if square.dtype == torch.float16 else square for square in squares_GMM]
        kernel = kernels.soften if len(kept) == 1 else kernels.pass_through_softmax
        arrays = [as_array(square.unflatten(0, (-1, self.heads))) for square in kept]
        self._run(kernel, *arrays, factor, draws.scale, draws.drawn)
        for square, written in zip(squares_GMM, kept, strict=True):
            if written is not square:
                square.copy_(written)

    def _run(self, kernel: Any, *arguments: Any) -> None:
        box = (self.firsts_b, self.lengths_b, self.real_b)
        in_threads(lambda first, end: kernel(*arguments, box, first, end), self.lengths_b.tolist(), worth=64)


def _in_boxes(
    rows_NE: Tensor, layout: Layout, heads: int, parts: int, squares: int
) -> Iterator[tuple[_Box, Tensor, Tensor]]:
    """Boxes of all sequences, and memory for each: of parts (X, G, M, d) of rows, and of squares (X, G, M, M)."""
    boxes = _boxes(layout, heads)
    width = rows_NE.shape[1] // 3 // heads
    of_rows = rows_NE.new_empty(parts * max((box.pairs * box.longest * width for box in boxes), default=0))
    of_squares = rows_NE.new_empty(squares * max((box.pairs * box.longest**2 for box in boxes), default=0))
    for box in boxes:
        of_row, of_square = (box.pairs, box.longest, width), (box.pairs, box.longest, box.longest)
        yield (
            box,
            of_rows[: parts * math.prod(of_row)].view(parts, *of_row),
            of_squares[: squares * math.prod(of_square)].view(squares, *of_square),
        )


def _boxes(layout: Layout, heads: int) -> list[_Box]:
    """The sequences with others of similar length, as many as come to ROWS_OF_A_BOX with the longest's length each."""
    boxes: list[list[int]] = []
    for sequence in sorted(range(len(layout.lengths)), key=lambda place: -layout.lengths[place]):
        if not boxes or (len(boxes[-1]) + 1) * layout.lengths[boxes[-1][0]] > ROWS_OF_A_BOX:
            boxes.append([])
        boxes[-1].append(sequence)
    lengths_B, real_B = np.array(layout.lengths), np.array(layout.real)
    firsts_B = lengths_B.cumsum() - lengths_B
    return [_Box(firsts_B[box], lengths_B[box], real_B[box], heads) for box in boxes]
