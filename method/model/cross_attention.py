"""What both kinds of fusion end with, and the ordinary one: frames attend to all frames of the other branch.

Letters: N rows that ask, K rows that answer, D width, B videos, H heads, L the longest video.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from method.data.ragged import Layout, Ragged
from method.ops.cpu.dropout import relu_dropout
from method.ops.cpu.feed_forward import feed_forward
from method.runtime import hardware

DROPOUT = 0.05
FEED_FORWARD_WIDTH = 2048


class FeedForward(nn.Module):
    """LN(x + attended), then LN(x + FFN(x)): the second half of both kinds of fusion."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attended_norm = nn.LayerNorm(width)
        self.inner = nn.Linear(width, FEED_FORWARD_WIDTH)
        self.outer = nn.Linear(FEED_FORWARD_WIDTH, width)
        self.output_norm = nn.LayerNorm(width)

    def forward(self, rows_ND: Tensor, attended_ND: Tensor) -> Tensor:
        """Add what was attended to and transform each row by itself; (N, D)."""
        rows_ND = self.attended_norm(rows_ND + attended_ND)
        return self.output_norm(rows_ND + self._transform(rows_ND))

    def _transform(self, rows_ND: Tensor) -> Tensor:
        if hardware.likes_large_kernels(rows_ND):
            return self.outer(relu_dropout(self.inner(rows_ND), DROPOUT, self.training))
        return feed_forward(rows_ND, self.inner, self.outer, DROPOUT if self.training else 0.0)


class AttentionFusion(nn.Module):
    """Ordinary cross attention over all real frames of the same video."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.feed_forward = FeedForward(width)

    def rows_needed(self, asking: Layout, answering: Layout) -> tuple[list[int], list[int]]:
        """Rows of each video that must be encoded: the real ones."""
        return list(asking.real), list(answering.real)

    def forward(self, asking: Ragged, answering: Ragged) -> Ragged:
        """Let asking rows (N, D) attend to the answering rows (K, D) of their video; the real rows of the first."""
        layout = answering.layout
        query, key, value = (
            rows.layout.pad(project(rows.values)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for rows, project in ((asking, self.query), (answering, self.key), (answering, self.value))
        )
        attended_BHLd = F.scaled_dot_product_attention(
            query, key, value, attn_mask=layout.real_BL[:, None, None, :], dropout_p=DROPOUT if self.training else 0.0
        )
        attended_ND = self.output(asking.layout.unpad(attended_BHLd.transpose(1, 2).flatten(2)))
        return asking.with_values(self.feed_forward(asking.values, attended_ND)).real()
