"""The CPU backend: Numba kernels. Importing it raises ImportError where Numba is missing or disabled."""

from method.ops.cpu.best_dots import best_dots
from method.ops.cpu.deformable_attention import deformable_attention
from method.ops.cpu.dropout import dropout, relu_dropout
from method.ops.cpu.feed_forward import feed_forward
from method.ops.cpu.highest_dots import highest_dots
from method.ops.cpu.normalized_linear import normalized_linear
from method.ops.cpu.self_attention import self_attention

CHUNK_ROWS: int | None = 1024  # the fusion's intermediate results of so many frames fit the cache

__all__ = [
    "CHUNK_ROWS",
    "best_dots",
    "deformable_attention",
    "dropout",
    "feed_forward",
    "highest_dots",
    "normalized_linear",
    "relu_dropout",
    "self_attention",
]
