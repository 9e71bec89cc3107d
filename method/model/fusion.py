"""Deformable fusion: each frame of one branch attends to a few positions of the other, which it chooses itself.

Letters: B videos, N rows that ask and their longest video L, K rows that answer and their longest video M, D width,
H heads, G offset groups, J sampled positions a frame and group, X = GJ; n real rows of those that ask, k taps.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from method.data.ragged import Layout, Ragged
from method.model.architecture import Architecture, Extent
from method.model.cross_attention import DROPOUT, FeedForward
from method.ops.chunking import recomputed
from method.ops.cpu.deformable_attention import Samples, TwoLayers, attend_to_samples, folded, transformed
from method.ops.cpu.dropout import dropout, relu_dropout
from method.ops.reference import sampled
from method.runtime import hardware

POSITIONS = 128
PUBLISHED_LOGIT_SCALE = 70.0
ROWS_AT_ONCE = 1024


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
        last_L = max(longest_L - 1, 1)
        last = [_padded_place(length - 1 + self.offset_scale, last_L, longest_M) for length in asking.real]
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
        query = asking.with_values(self.to_query.second(self._hidden(self.to_query.first, asking.values)))
        attended_ND = self._attend_all(query, answering)
        real = asking.real()
        return real.with_values(self.feed_forward(real.values, attended_ND))

    def _attend_all(self, query: Ragged, answering: Ragged) -> Tensor:
        """`_attend` of all real query rows, (N, D); on a CPU a few videos at a time, so that they fit its cache."""
        counts = _videos_at_once(query.layout, answering.layout)
        parts = zip(query.split(counts), answering.split(counts), strict=True)
        return torch.cat([self._attend(asked, read) for asked, read in parts])

    def _hidden(self, first: nn.Linear, rows: Tensor) -> Tensor:
        return relu_dropout(first(rows), DROPOUT, self.training)

    def _samples(self, query_ND: Tensor, asking: Layout, answering: Layout) -> tuple[Tensor, Tensor]:
        """The two answering rows between which each position of a real row lies and the share of each, (N, J, G, 2).

        A row looks at its own place and a learned offset, in asking frames.
        """
        convolved = self._convolved(Ragged(query_ND, asking))
        positions_NGJ = convolved.layout.position_N[:, None, None] + self._offsets(convolved.values)
        return self._places(positions_NGJ, convolved.layout, answering)

    def _convolved(self, query: Ragged) -> Ragged:
        """GELU of the depthwise convolution over the rows of each video, at its real rows."""
        weight_kD = self.offset_convolution.weight[:, 0].repeat(self.groups, 1).t()
        assert self.offset_convolution.bias is not None
        layout = query.layout
        around_BLD = F.pad(layout.pad(query.values), (0, 0, self.reach, self.reach))
        mixed_BLD = self.offset_convolution.bias.repeat(self.groups)
        for tap, weight_D in enumerate(weight_kD):
            mixed_BLD = mixed_BLD + weight_D * around_BLD[:, tap : tap + layout.max_length]
        return query.with_values(F.gelu(layout.unpad(mixed_BLD))).real()

    def _offsets(self, convolved_nD: Tensor) -> Tensor:
        """What each row adds to its own place, (n, G, J)."""
        # One product for all groups, of mostly zeros: of many rows for few channels each it would take a CPU longer.
        weight_XD = torch.block_diag(*[self.offset_output.weight[:, :, 0]] * self.groups)
        offsets_nX = F.linear(convolved_nD, weight_XD).float().tanh() * self.offset_scale
        return offsets_nX.unflatten(-1, (self.groups, -1))

    def _places(self, positions_NGJ: Tensor, real: Layout, answering: Layout) -> tuple[Tensor, Tensor]:
        """The two answering rows between which each position lies and the share of each, (N, J, G, 2)."""
        owner_N = real.owner_N
        if self.extent == "padded":
            last_asking_N = torch.full_like(owner_N, real.longest - 1)
            last_answering_N = torch.full_like(owner_N, answering.longest - 1)
        else:
            last_asking_N, last_answering_N = real.real_B[owner_N] - 1, answering.real_B[owner_N] - 1
        starts_N, ends_N = answering.starts_B[owner_N], answering.lengths_B[owner_N] - 1
        return self._neighbours(positions_NGJ, last_asking_N, last_answering_N, starts_N, ends_N)

    def _neighbours(
        self, positions_NGJ: Tensor, last_asking_N: Tensor, last_answering_N: Tensor, starts_N: Tensor, ends_N: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The same, given the last frame of both streams that counts, and where the rows of the answering video lie.

        starts_N: the first of them. ends_N: the last of them, counted from there.
        """
        positions_NJG = positions_NGJ.transpose(1, 2)
        last_asking, last_answering = _like(last_asking_N, positions_NJG), _like(last_answering_N, positions_NJG)
        if self.extent == "padded":
            place = _padded_place(positions_NJG, last_asking.clamp(min=1), last_answering + 1)
        else:
            inside = torch.minimum(positions_NJG.clamp(min=0), last_asking)
            place = inside * (last_answering / last_asking.clamp(min=1))
        below = place.detach().floor()
        fraction = place - below
        rows = torch.stack([below, below + 1], -1).long()
        weights = torch.stack([1 - fraction, fraction], -1)
        weights = weights.masked_fill((rows < 0) | (rows > last_answering[..., None]), 0.0)
        return torch.minimum(rows.clamp(min=0), _like(ends_N, rows)) + _like(starts_N, rows), weights

    def _attend(self, query: Ragged, answering: Ragged) -> Tensor:
        """Attention of each real query row over its own J samples of the answering rows, (N, D)."""
        places, shares = recomputed(self._samples, query.values, query.layout, answering.layout)
        real, head_width = query.real(), query.values.shape[1] // self.heads
        # The bias of keys adds the same to all logits of a row, which a softmax does not see: its gradient is zero.
        logit_scale = self.logit_scale + 0 * self.to_key.second.bias.sum()
        scale = logit_scale * (head_width * (query.layout.longest if self.extent == "padded" else 1)) ** -0.5
        if hardware.likes_large_kernels(query.values):
            made = sampled(answering.values, places.flatten(0, 1), shares.flatten(0, 1))
            keys_NJD, values_NJD = (
                relu_dropout(mlp.first(made), DROPOUT, self.training).unflatten(0, (-1, self.count))
                for mlp in (self.to_key, self.to_value)
            )
            return self._weigh(real.values, keys_NJD, values_NJD, scale)
        samples = Samples(places, shares, real.layout.lengths, answering.layout.lengths)
        read, probability = (answering.values, samples, self.to_key, self.to_value), DROPOUT if self.training else 0.0
        return attend_to_samples(real.values, *read, self.heads, scale, probability)

    def _weigh(self, query_ND: Tensor, keys_NJD: Tensor, values_NJD: Tensor, scale: Tensor) -> Tensor:
        """Attention over the hidden rows of the key and value MLPs, (N, D)."""
        folded_HND = folded(query_ND, scale, self.to_key.second.weight, self.heads)
        logits_NHJ = torch.bmm(folded_HND.transpose(0, 1), keys_NJD.transpose(1, 2))
        weights_NHJ = dropout(logits_NHJ.float().softmax(-1), DROPOUT, self.training).to(values_NJD.dtype)
        summed_HND = torch.bmm(weights_NHJ, values_NJD).transpose(0, 1).contiguous()  # as two products read it
        return transformed(summed_HND, weights_NHJ.sum(-1).t(), *self.to_value.second.parameters())


def _like(values_N: Tensor, other: Tensor) -> Tensor:
    """A number a row, shaped to meet a tensor (N, ...)."""
    return values_N.view(-1, *[1] * (other.dim() - 1))


def _videos_at_once(asking: Layout, answering: Layout) -> list[int]:
    """How many videos to take at a time: on a CPU those with ROWS_AT_ONCE rows together, so that they fit its cache."""
    if hardware.likes_large_kernels(asking.owner_N):
        return [len(asking.lengths)]
    counts, asked, read = [0], 0, 0
    for more_asked, more_read in zip(asking.lengths, answering.lengths, strict=True):
        asked, read = asked + more_asked, read + more_read
        if counts[-1] and max(asked, read) > ROWS_AT_ONCE:
            counts.append(0)
            asked, read = more_asked, more_read
        counts[-1] += 1
    return counts


class PositionTable(nn.Module):
    """Adds LayerNorm of a learned embedding of each row's place."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(POSITIONS, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, rows: Ragged) -> Ragged:
        """Rows (N, D) with their places added."""
        return rows.with_values(rows.values + F.embedding(rows.layout.position_N, self.norm(self.table.weight)))


def _padded_place(position: Tensor | float, last_L: Tensor | int, longest_M: Tensor | int):  # type: ignore[no-untyped-def]
    """Where the published program reads for a position: from -0.5 to M - 0.5, over the padded lengths."""
    unit = 2 * position / last_L - 1
    unit = unit.clamp(-1, 1) if isinstance(unit, Tensor) else min(max(unit, -1.0), 1.0)
    return ((unit + 1) * longest_M - 1) / 2
