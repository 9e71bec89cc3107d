"""Heads that compare a query with averages of adjacent frames, too: "clips" and "windows".

The key projection is linear and has no bias, so the key of averaged frames is the average of their keys, and its dot
product with a query the average of theirs. A window therefore costs additions instead of a matrix product, and keys
and index hold frames alone, as with the head "frames". A video of one frame scores as it does there.

Letters: Q queries, B videos, N rows of all of them, L of the longest, D width, W windows of one size; K clips of all
videos.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from method.data.ragged import Layout, Ragged
from method.model.architecture import Architecture
from method.model.retrieval import HEADS, Branch
from method.model.scoring import Similarity, similarity

CLIPS = 32
WINDOW_SIZES = (1, 3, 5)
_SMALLEST_NORM = 1e-12


class ClipBranch(Branch):
    """Two scales: the best frame, and the best run of adjacent clips.

    Dong et al., *Partially Relevant Video Retrieval*, ACM MM 2022 (MS-SL): a video is averaged to at most 32 clips of
    equal length, and the averages of any number of adjacent clips are candidates. The score is `clip_weight` times the
    cosine of the best candidate and the rest of 1 times that of the best frame. Unlike there, clips are averages of
    encoded frames, without an encoder of their own, and no attention weighs the frames.
    """

    def __init__(self, frame_width: int, architecture: Architecture) -> None:
        super().__init__(frame_width, architecture)
        self.clip_weight = architecture.clip_weight

    def score(self, keys: Ragged, queries_QD: Tensor) -> Similarity:
        """Every query against every video; the best frame is that of the frames alone."""
        frames = similarity(keys, queries_QD)
        clips = best_windows(equal_clips(keys, CLIPS), queries_QD, range(1, CLIPS + 1))
        return Similarity(
            torch.lerp(frames.cosine_QB, clips.cosine_QB, self.clip_weight),
            torch.lerp(frames.raw_QB, clips.raw_QB, self.clip_weight),
            frames.best_frame_QB,
        )


class WindowBranch(Branch):
    """The best average of 1, 3 or 5 adjacent frames: MS-SL's candidates (see `ClipBranch`) at the scale of frames."""

    def score(self, keys: Ragged, queries_QD: Tensor) -> Similarity:
        """Every query against every video; the best frame is the centre of the best window."""
        return best_windows(keys, queries_QD, WINDOW_SIZES)


HEADS.update(clips=ClipBranch, windows=WindowBranch)


def equal_clips(frames: Ragged, count: int) -> Ragged:
    """Average the frames of each video to at most `count` clips: clip i of c has frames [i n / c] to [(i+1) n / c] - 1.

    >>> equal_clips(Ragged.of([torch.arange(5.0)[:, None], torch.ones(1, 1)]), 2).values.flatten().tolist()
    [0.5, 3.0, 1.0]
    """
    layout = frames.layout
    clips = Layout.of([min(length, count) for length in layout.lengths], device=layout.device)
    first_K = clips.position_N * layout.lengths_B[clips.owner_N] // clips.lengths_B[clips.owner_N]
    first_K = first_K + layout.starts_B[clips.owner_N]
    row_N = torch.arange(layout.rows, device=layout.device)
    return Ragged(F.embedding_bag(row_N, frames.values.float(), first_K, mode="mean"), clips)


def best_windows(rows: Ragged, queries_QD: Tensor, sizes: Sequence[int]) -> Similarity:
    """Score every query against every video by the best average of adjacent rows.

    Args:
        rows: (N, D), all valid.
        sizes: how many rows a window may have, ascending from 1.

    Returns:
        The cosine of the best window; the largest dot product, which is that of a single row, since no average exceeds
        its largest part; and the row in the middle of the window with the best cosine, the first of equals.
    """
    layout = rows.layout
    sizes = [size for size in sizes if size <= layout.max_length]
    dots_BLQ = layout.pad((rows.values @ queries_QD.t()).float())
    norms_SBL = _norms(layout.pad(rows.values.float()), sizes)
    with torch.no_grad():
        choice_BQ, first_BQ = _best_window(dots_BLQ, norms_SBL, sizes, layout)
        size_BQ = torch.tensor(sizes, device=layout.device)[choice_BQ]
        row_L1 = torch.arange(layout.max_length, device=layout.device)[:, None]
        inside_BLQ = (row_L1 >= first_BQ[:, None]) & (row_L1 < (first_BQ + size_BQ)[:, None])
        largest_BQ = _inside(dots_BLQ, 1, layout).argmax(1)
    video_B1 = torch.arange(len(layout.lengths), device=layout.device)[:, None]
    query_norms_Q = queries_QD.float().norm(dim=-1).clamp(min=_SMALLEST_NORM)
    cosine_BQ = (dots_BLQ * inside_BLQ).sum(1) / (norms_SBL[choice_BQ, video_B1, first_BQ] * query_norms_Q)
    raw_BQ = dots_BLQ.gather(1, largest_BQ[:, None])[:, 0]
    return Similarity(cosine_BQ.t(), raw_BQ.t(), (first_BQ + (size_BQ - 1) // 2).t())


def _norms(rows_BLD: Tensor, sizes: Sequence[int]) -> Tensor:
    """Length of the sum of the rows of each window, by its size and first row, (S, B, L); 1 where none fits.

    Of the sum s(i, n) of n rows from i on: |s(i, n)|^2 = |s(i, n-1)|^2 + |s(i+1, n-1)|^2 - |s(i+1, n-2)|^2
    + 2 row(i) . row(i+n-1).
    """
    with torch.autocast(rows_BLD.device.type, enabled=False):
        dots_BLL = torch.bmm(rows_BLD, rows_BLD.mT)
    length = rows_BLD.shape[1]
    smaller_BW = dots_BLL.new_zeros(len(dots_BLL), length + 1, dtype=torch.double)
    squares_BW = dots_BLL.diagonal(0, 1, 2).double()
    by_size = {1: squares_BW}
    for size in range(2, sizes[-1] + 1):
        both_BW = squares_BW[:, :-1] + squares_BW[:, 1:] - smaller_BW[:, 1:-1]
        smaller_BW, squares_BW = squares_BW, both_BW + 2 * dots_BLL.diagonal(size - 1, 1, 2)
        by_size[size] = squares_BW
    squares_SBL = torch.stack([F.pad(by_size[size], (0, size - 1), value=1.0) for size in sizes])
    return squares_SBL.clamp(min=_SMALLEST_NORM**2).sqrt().float()


def _best_window(dots_BLQ: Tensor, norms_SBL: Tensor, sizes: Sequence[int], layout: Layout) -> tuple[Tensor, Tensor]:
    """The window with the largest cosine: the index of its size in `sizes`, and its first row, each (B, Q)."""
    sums_BWQ, best_BQ = dots_BLQ, dots_BLQ[:, 0]
    choice_BQ = torch.zeros_like(best_BQ, dtype=torch.long)
    for size in range(1, sizes[-1] + 1):
        if size > 1:
            sums_BWQ = sums_BWQ[:, :-1] + dots_BLQ[:, size - 1 :]
        if size in sizes:
            choice = sizes.index(size)
            cosine_BWQ = _inside(sums_BWQ / norms_SBL[choice, :, : sums_BWQ.shape[1], None], size, layout)
            found_BQ = cosine_BWQ.amax(1)  # max() would also find the window, and take five times as long on a CPU
            choice_BQ = choice_BQ.masked_fill(found_BQ > best_BQ, choice) if choice else choice_BQ
            best_BQ = torch.maximum(found_BQ, best_BQ) if choice else found_BQ

    row_L1 = torch.arange(layout.max_length, device=layout.device)[:, None]
    video_B11 = torch.arange(len(layout.lengths), device=layout.device)[:, None, None]
    end_BLQ = row_L1 + torch.tensor(sizes, device=layout.device)[choice_BQ][:, None]
    before_BLQ = F.pad(dots_BLQ.cumsum(1), (0, 0, 1, 0))
    sums_BLQ = before_BLQ.gather(1, end_BLQ.clamp(max=layout.max_length)) - before_BLQ[:, :-1]
    cosine_BLQ = sums_BLQ / norms_SBL[choice_BQ[:, None], video_B11, row_L1]
    first_BQ = cosine_BLQ.masked_fill(end_BLQ > layout.lengths_B[:, None, None], -torch.inf).argmax(1)
    return choice_BQ, first_BQ


def _inside(windows_BWQ: Tensor, size: int, layout: Layout) -> Tensor:
    """Values of windows, -inf for those that end after the last row of their video."""
    if layout.is_dense:
        return windows_BWQ
    first_W1 = torch.arange(windows_BWQ.shape[1], device=layout.device)[:, None]
    return windows_BWQ.masked_fill(first_W1 + size > layout.lengths_B[:, None, None], -torch.inf)
