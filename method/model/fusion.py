"""Cross-branch fusion: the frames of one branch attend to the frames of the other.

Letters: B videos, N rows that ask and their longest video L, K rows that answer and their longest video M, D width,
H heads, G offset groups, J sampled positions a frame and group.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from method.data.ragged import Layout, Ragged
from method.model.architecture import Architecture, Extent
from method.model.dropout import dropout, relu_dropout

DROPOUT = 0.05
FEED_FORWARD_WIDTH = 2048
POSITIONS = 128
PUBLISHED_LOGIT_SCALE = 70.0


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
        inner = relu_dropout(self.inner(rows_ND), DROPOUT, self.training)
        return self.output_norm(rows_ND + self.outer(inner))


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


class TwoLayers(nn.Module):
    """The weights of an MLP of two square layers; `DeformableFusion` decides where each is applied."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width)


class DeformableFusion(nn.Module):
    """Each asking frame attends to J positions of the other stream that it chooses itself, a few frames around it."""

    def __init__(self, architecture: Architecture, offset_scale: float) -> None:
        super().__init__()
        width = architecture.hidden_size
        self.extent: Extent = architecture.fusion_extent
        self.heads = architecture.fusion_heads
        self.groups = architecture.offset_groups
        self.count = architecture.offset_count
        self.offset_scale = offset_scale
        group_width = width // self.groups
        kernel = architecture.offset_kernel
        self.reach = kernel // 2
        self.to_query = TwoLayers(width)
        self.to_key = TwoLayers(width)
        self.to_value = TwoLayers(width)
        self.offset_convolution = nn.Conv1d(group_width, group_width, kernel, padding=self.reach, groups=group_width)
        self.offset_output = nn.Conv1d(group_width, self.count, 1, bias=False)
        scale = PUBLISHED_LOGIT_SCALE if self.extent == "padded" else PUBLISHED_LOGIT_SCALE / math.sqrt(POSITIONS)
        self.logit_scale = nn.Parameter(torch.tensor(scale))
        self.asking_positions = PositionTable(width) if architecture.fusion_positions else None
        self.answering_positions = PositionTable(width) if architecture.fusion_positions else None
        self.feed_forward = FeedForward(width)

    def rows_needed(self, asking: Layout, answering: Layout) -> tuple[list[int], list[int]]:
        """Rows of each video that must be encoded, at least its real ones.

        With extent 'padded' the convolution over the asking frames and the sampling of the answering frames reach
        behind a video's end, as far as the longest video of the batch.
        """
        if self.extent == "valid":
            return list(asking.real), list(answering.real)
        longest_L, longest_M = asking.longest, answering.longest
        last = [_padded_place(length - 1 + self.offset_scale, longest_L, longest_M) for length in asking.real]
        return (
            [min(length + self.reach, longest_L) for length in asking.real],
            [
                max(length, min(longest_M, math.floor(place) + 2))
                for length, place in zip(answering.real, last, strict=True)
            ],
        )

    def forward(self, asking: Ragged, answering: Ragged) -> Ragged:
        """Let asking rows (N, D) attend to the answering rows (K, D) of their video; the real rows of the first."""
        if self.asking_positions is not None and self.answering_positions is not None:
            asking, answering = self.asking_positions(asking), self.answering_positions(answering)
        query_ND = self.to_query.second(self._hidden(self.to_query.first, asking.values))
        positions_NGJ = self._positions(asking.with_values(query_ND))
        real = asking.real()
        samples_NJD = self._sample(answering, real.layout, positions_NGJ, asking.layout)
        attended_ND = self._attend(asking.with_values(query_ND).real().values, samples_NJD, asking.layout.longest)
        return real.with_values(self.feed_forward(real.values, attended_ND))

    def _hidden(self, first: nn.Linear, rows: Tensor) -> Tensor:
        return relu_dropout(first(rows), DROPOUT, self.training)

    def _positions(self, query: Ragged) -> Tensor:
        """Where each real row looks, in asking frames: its own place and a learned offset, (N, G, J)."""
        layout = query.layout
        weight_Dk = self.offset_convolution.weight[:, 0].repeat(self.groups, 1)
        assert self.offset_convolution.bias is not None
        mixed_ND = self.offset_convolution.bias.repeat(self.groups).expand_as(query.values)
        around = F.pad(query.values, (0, 0, self.reach, self.reach))
        for tap in range(2 * self.reach + 1):
            neighbour_N = layout.position_N + (tap - self.reach)
            inside_N = (neighbour_N >= 0) & (neighbour_N < layout.lengths_B[layout.owner_N])
            shifted_ND = around[tap : tap + len(query.values)]
            mixed_ND = mixed_ND + shifted_ND * (weight_Dk[:, tap] * inside_N[:, None])
        mixed = query.with_values(mixed_ND).real()
        grouped_NGd = F.gelu(mixed.values.unflatten(-1, (self.groups, -1)))
        offsets_NGJ = F.linear(grouped_NGd, self.offset_output.weight[:, :, 0]).float().tanh() * self.offset_scale
        return mixed.layout.position_N[:, None, None] + offsets_NGJ

    def _sample(self, answering: Ragged, real: Layout, positions_NGJ: Tensor, asking: Layout) -> Tensor:
        """Read the answering rows at real-valued positions, each group its own channels: (N, J, D)."""
        owner_N = real.owner_N
        if self.extent == "padded":
            longest_M = answering.layout.longest
            place = _padded_place(positions_NGJ, asking.longest, longest_M)
            last: Tensor | int = longest_M - 1
        else:
            last_L = (real.real_B[owner_N] - 1)[:, None, None]
            last = (answering.layout.real_B[owner_N] - 1)[:, None, None]
            place = torch.minimum(positions_NGJ.clamp(min=0), last_L) * (last / last_L.clamp(min=1))
        below = place.detach().floor()
        fraction = place - below
        rows = torch.stack([below, below + 1], -1).long()  # (N, G, J, 2)
        weights = torch.stack([1 - fraction, fraction], -1)
        last_row = last if isinstance(last, int) else last[..., None]
        weights = weights.masked_fill((rows < 0) | (rows > last_row), 0.0)
        starts_N = answering.layout.starts_B[owner_N]
        ends_N = answering.layout.lengths_B[owner_N] - 1
        rows = torch.minimum(rows.clamp(min=0), ends_N[:, None, None, None]) + starts_N[:, None, None, None]
        group = torch.arange(self.groups, device=rows.device)[:, None, None]
        table = answering.values.unflatten(-1, (self.groups, -1)).flatten(0, 1)  # (K*G, D/G)
        order = (0, 2, 1, 3)  # (N, J, G, 2), so that the groups of a sample lie side by side
        bags = (rows * self.groups + group).permute(order).reshape(-1, 2)
        bag_weights = weights.permute(order).reshape(-1, 2).to(table.dtype)
        sampled = F.embedding_bag(bags, table, per_sample_weights=bag_weights, mode="sum")
        return sampled.view(len(owner_N), self.count, -1)

    def _attend(self, query_ND: Tensor, samples_NJD: Tensor, longest_L: int) -> Tensor:
        """Attention of each row over its own J samples, (N, D).

        The second layers of the key and value MLPs are never applied to the samples: a key is only ever multiplied
        with the query, so its layer is folded into the query; values are summed first and transformed after.
        """
        rows, heads = len(query_ND), self.heads
        head_width = query_ND.shape[1] // heads
        weight = torch.cat([self.to_key.first.weight, self.to_value.first.weight])
        bias = torch.cat([self.to_key.first.bias, self.to_value.first.bias])
        hidden = relu_dropout(F.linear(samples_NJD.flatten(0, 1), weight, bias), DROPOUT, self.training)
        keys_NJD, values_NJD = hidden.view(rows, self.count, -1).chunk(2, -1)
        query_HNd = query_ND.view(rows, heads, head_width).transpose(0, 1)
        folded_NHD = torch.bmm(query_HNd, self.to_key.second.weight.view(heads, head_width, -1)).transpose(0, 1)
        constant_HN = torch.einsum("hnd,hd->hn", query_HNd, self.to_key.second.bias.view(heads, head_width))
        logits_NHJ = torch.bmm(folded_NHD, keys_NJD.transpose(1, 2)) + constant_HN.t()[..., None]
        temperature = self.logit_scale * (longest_L**-0.5 if self.extent == "padded" else 1.0)
        weights_NHJ = (logits_NHJ.float() * (head_width**-0.5 * temperature)).softmax(-1)
        weights_NHJ = dropout(weights_NHJ, DROPOUT, self.training).to(values_NJD.dtype)
        summed_HND = torch.bmm(weights_NHJ, values_NJD).transpose(0, 1)
        attended_HNd = torch.bmm(summed_HND, self.to_value.second.weight.view(heads, head_width, -1).transpose(1, 2))
        share_HN1 = weights_NHJ.sum(-1).t()[..., None]  # dropout leaves it off 1
        attended_HNd = attended_HNd + share_HN1 * self.to_value.second.bias.view(heads, 1, head_width)
        return attended_HNd.transpose(0, 1).reshape(rows, -1)


class PositionTable(nn.Module):
    """Adds LayerNorm of a learned embedding of each row's place."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(POSITIONS, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, rows: Ragged) -> Ragged:
        """Rows (N, D) with their places added."""
        return rows.with_values(rows.values + self.norm(self.table.weight)[rows.layout.position_N])


def _padded_place(position: Tensor | float, longest_L: int, longest_M: int):  # type: ignore[no-untyped-def]
    """Where the published program reads for a position: from -0.5 to M - 0.5, over the padded lengths."""
    unit = 2 * position / max(longest_L - 1, 1) - 1
    unit = unit.clamp(-1, 1) if isinstance(unit, Tensor) else min(max(unit, -1.0), 1.0)
    return ((unit + 1) * longest_M - 1) / 2
