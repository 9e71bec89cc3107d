"""The operations of the model that have a fast implementation on a CPU. This module alone chooses between the two.

    reference    plain PyTorch: on a GPU, and on a CPU without Numba
    cpu          Numba kernels: a training step is about 1.5 times as fast as with the reference, and takes less memory

The environment variable A3PRVR_OPS=reference|cpu overrides the choice.

Letters: N rows or query frames, I input width, D width, E = 3D, K context frames; Q queries, B videos, X = 2 choices of
the best frame.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from method.data.ragged import Layout, Ragged
from method.ops import chunking, reference
from method.ops.chunking import Result
from method.ops.interface import MLP, Backend, SamplingPoints
from method.runtime.errors import InputError

log = logging.getLogger(__name__)

VARIABLE = "A3PRVR_OPS"

__all__ = [
    "MLP",
    "SamplingPoints",
    "backend",
    "best_dots",
    "checkpointed",
    "deformable_attention",
    "dropout",
    "feed_forward",
    "highest_dots",
    "map_videos",
    "normalized_linear",
    "relu_dropout",
    "self_attention",
]


def backend(tensor: Tensor) -> Backend:
    """The implementation for tensors on this device.

    InputError if A3PRVR_OPS names one that does not exist or cannot run.
    """
    chosen = os.environ.get(VARIABLE, "")
    if chosen not in ("", "reference", "cpu"):
        raise InputError(f"{VARIABLE}={chosen}: expected reference or cpu")
    if chosen == "reference" or (tensor.device.type != "cpu" and not chosen):
        return reference
    if tensor.device.type != "cpu":
        raise InputError(f"{VARIABLE}=cpu: the model is on a GPU, expected --device -1")
    kernels = _cpu_backend()
    if isinstance(kernels, ImportError):
        if chosen:
            raise InputError(f"{VARIABLE}=cpu: {kernels} (pip install -r requirements-cpu.txt)")
        return reference
    return kernels


@cache
def _cpu_backend() -> Backend | ImportError:
    """The Numba backend, imported when first needed (half a second), or the reason why it cannot be."""
    try:
        from method.ops import cpu
    except ImportError as error:
        log.info("Training on this CPU runs without Numba kernels, about 1.5 times as long: %s", error)
        return error
    return cpu


def dropout(values: Tensor, probability: float, training: bool) -> Tensor:
    """Zero each value with a probability, independently, and divide the others by 1 - probability."""
    if not training or probability == 0:
        return values
    return backend(values).dropout(values, probability)


def relu_dropout(values: Tensor, probability: float, training: bool) -> Tensor:
    """`dropout(relu(values))`; may reuse the memory of `values`, a contiguous intermediate result (not a view)."""
    if not training or probability == 0:
        return F.relu(values)
    return backend(values).relu_dropout(values, probability)


def normalized_linear(rows_NI: Tensor, norm: nn.LayerNorm, layer: nn.Linear, probability: float) -> Tensor:
    """`layer(dropout(norm(rows)))`, (N, D); fast where the rows are features, which need no gradient."""
    chosen = reference if rows_NI.requires_grad else backend(rows_NI)
    return chosen.normalized_linear(rows_NI, norm, layer, probability)


def self_attention(
    projected_NE: Tensor, layout: Layout, heads: int, probability: float, sigma: float | None = None
) -> Tensor:
    """Scaled dot-product attention of each row over the valid rows of its sequence, (N, D).

    Args:
        projected_NE: query, key and value side by side, (N, 3D).
        layout: of the sequences; ValueError unless it has N rows.
        probability: of dropout of the attention weights.
        sigma: if given, the logit of rows i and j of n valid ones is multiplied by exp(-((i - j) / n)^2 / (2 sigma^2)).
    """
    layout.expect_rows(projected_NE)
    return backend(projected_NE).self_attention(projected_NE, layout, heads, probability, sigma)


def feed_forward(rows_ND: Tensor, inner: nn.Linear, outer: nn.Linear, probability: float) -> Tensor:
    """`outer(dropout(relu(inner(rows))))`, (N, D)."""
    return backend(rows_ND).feed_forward(rows_ND, inner, outer, probability)


def deformable_attention(
    query_ND: Tensor,
    context_KD: Tensor,
    points: SamplingPoints,
    to_key: MLP,
    to_value: MLP,
    heads: int,
    scale: Tensor,
    probability: float,
) -> Tensor:
    """Attention of each query frame over the keys and values of its own sampling points, (N, D).

    Args:
        to_key: the bias of its second layer is not used: it shifts all logits of a row alike, which softmax ignores.
        scale: factor of the logits, a scalar.
        probability: of dropout, of hidden rows and of attention weights.
    """
    return backend(query_ND).deformable_attention(
        query_ND, context_KD, points, to_key, to_value, heads, scale, probability
    )


def best_dots(frames_ND: Tensor, norms_N: Tensor, queries_QD: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """Dot products of queries with the best frame of each video: by largest cosine (0) and by largest product (1).

    Args:
        norms_N: lengths of the frames, without gradient.

    Returns:
        The dot products, float32 (X, B, Q), and the index of each frame in its video, (X, B, Q): the first of equals,
        and a frame with NaN before any other.
    """
    layout.expect_rows(frames_ND)
    return backend(frames_ND).best_dots(frames_ND, norms_N, queries_QD, layout)


def highest_dots(rows_ND: Tensor, starts_B: Tensor, lengths_B: Tensor, queries_QD: Tensor) -> Tensor:
    """The highest dot product of each query with the rows of each video, float32 (B, Q); for search, without gradient.

    On a CPU, few queries take as long as reading the rows from memory.

    Args:
        rows_ND: float32, bf16 or fp16.
        starts_B: first row of each video. lengths_B: how many rows it has, at least one.
        queries_QD: float32.
    """
    # Kernels read 16-bit floats as bf16.
    chosen = reference if rows_ND.dtype == torch.float16 else backend(rows_ND)
    return chosen.highest_dots(rows_ND, starts_B, lengths_B, queries_QD)


def map_videos(function: Callable[..., Tensor], *sequences: Ragged) -> Tensor:
    """`function(*sequences)`, rows of the videos in order; on a CPU for as many videos at a time as fit its cache."""
    rows = backend(sequences[0].values).CHUNK_ROWS
    return function(*sequences) if rows is None else chunking.map_chunks(function, sequences, rows)


def checkpointed(function: Callable[..., Result], rows: Tensor, *arguments: Any) -> Result:
    """`function(rows, *arguments)`; on a CPU recomputed in the backward pass instead of stored.

    For a part that takes little of a step's time and much of its memory.
    """
    if backend(rows).CHUNK_ROWS is None:
        return function(rows, *arguments)
    return chunking.checkpointed(function, rows, *arguments)
