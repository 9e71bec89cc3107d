"""Preprocessing of features: frames are averaged to a maximum length, tokens cut, and every row is normalised.

Letters: n rows of a stream as stored, w tokens, D width, L = max_length.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

FloatRows = npt.NDArray[np.float32]


def sample_frames(rows_nD: FloatRows, max_length: int) -> FloatRows:
    """Average a stream (n, D) of more than `max_length` rows into that many segments; a shorter one is unchanged.

    Segment i covers rows round(i/L*n) to round((i+1)/L*n), both capped at n-1; an empty segment is its first row.
    """
    n = len(rows_nD)
    if n <= max_length:
        return rows_nD
    edges = np.minimum(np.round(np.arange(max_length + 1) / max_length * n).astype(np.int64), n - 1)
    starts, ends = edges[:-1], edges[1:]
    # reduceat sums up to the next start, and for an empty segment returns its first row. The last segment has no next
    # start, so the rows are cut at its end.
    sums = np.add.reduceat(rows_nD[: max(int(ends[-1]), int(starts[-1]) + 1)], starts, axis=0)
    return (sums / np.maximum(ends - starts, 1)[:, None]).astype(np.float32)


def normalize_rows(rows: Tensor) -> Tensor:
    """Divide each row of (..., D) by its L2 norm + 1e-5."""
    return rows / (rows.norm(dim=-1, keepdim=True) + 1e-5)


def preprocess_stream(rows_nD: FloatRows, max_length: int) -> Tensor:
    """Model input for a stream: at most `max_length` sampled, normalised frames, (min(n, L), D)."""
    return normalize_rows(torch.from_numpy(sample_frames(rows_nD, max_length)))


def preprocess_query(rows_wD: FloatRows, max_length: int) -> Tensor:
    """Model input for a caption: the first `max_length` token features, normalised, (min(w, L), D)."""
    return normalize_rows(torch.from_numpy(rows_wD[:max_length]))
