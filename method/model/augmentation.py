"""Augmentation of features in training: rows left out, and noise.

Letters: B sequences, N rows of all of them, I width.
"""

from __future__ import annotations

import math

import torch

from method.data.ragged import Layout, Ragged
from method.runtime import hardware


def augmented(rows: Ragged, drop: float, noise: float) -> Ragged:
    """Rows without some of them, and with noise on the others, both drawn from PyTorch's global generator.

    Whole rows are left out as in Wei and Zou, *EDA: Easy Data Augmentation*, EMNLP 2019, noise as in Bishop, *Training
    with Noise is Equivalent to Tikhonov Regularization*, Neural Computation 1995.

    Args:
        rows: (N, I), all valid.
        drop: probability that a row is left out, independently; at least one row of each sequence stays.
        noise: the noise of a row has about this norm relative to its own.
    """
    if drop:
        rows = _without_some(rows, drop)
    if noise:
        norms_N1 = rows.values.norm(dim=-1, keepdim=True)
        scale = noise / math.sqrt(rows.values.shape[1])
        rows = rows.with_values(rows.values + scale * norms_N1 * torch.randn_like(rows.values))
    return rows


def _without_some(rows: Ragged, drop: float) -> Ragged:
    layout = rows.layout.to("cpu")  # where lengths are needed: no synchronisation with a GPU
    drawn_N = torch.rand(layout.rows)
    largest_B = torch.zeros(len(layout.lengths)).scatter_reduce(0, layout.owner_N, drawn_N, "amax")
    kept_N = (drawn_N >= drop) | (drawn_N == largest_B[layout.owner_N])
    lengths = torch.bincount(layout.owner_N[kept_N], minlength=len(layout.lengths)).tolist()
    index_n = hardware.to_device_async(kept_N.nonzero()[:, 0], rows.layout.device)
    # The longest video of the whole batch may be another process's: it stays what it is, an upper bound.
    kept = Layout.of(lengths, longest=layout.longest, device=rows.layout.device)
    return Ragged(rows.values.index_select(0, index_n), kept)
