"""Cross-branch fusion: the frames of one branch attend to those of the other branch of the same video.

Letters: B videos; N query frames, L of the longest video; K context frames, M of the longest; n valid query frames;
D width, H heads, G offset groups, J sampling points of a query frame, X = GJ.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from method import ops
from method.data.ragged import Layout, Ragged
from method.model.architecture import Architecture
from method.ops import MLP, SamplingPoints

DROPOUT = 0.05
FEED_FORWARD_WIDTH = 2048
POSITIONS = 128
PUBLISHED_LOGIT_SCALE = 70.0


class FeedForward(nn.Module):
    """LN(x + attended), then LN(x + FFN(x)): the second half of either fusion."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attended_norm = nn.LayerNorm(width)
        self.inner = nn.Linear(width, FEED_FORWARD_WIDTH)
        self.outer = nn.Linear(FEED_FORWARD_WIDTH, width)
        self.output_norm = nn.LayerNorm(width)

    def forward(self, frames_ND: Tensor, attended_ND: Tensor) -> Tensor:
        """Add the attention's output and transform each frame, (N, D)."""
        frames_ND = self.attended_norm(frames_ND + attended_ND)
        probability = DROPOUT if self.training else 0.0
        return self.output_norm(frames_ND + ops.feed_forward(frames_ND, self.inner, self.outer, probability))


class AttentionFusion(nn.Module):
    """Ordinary cross attention over all valid context frames of the same video."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        width, self.heads = architecture.hidden_size, architecture.fusion_heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.feed_forward = FeedForward(width)

    def required_lengths(self, query: Layout, context: Layout) -> tuple[list[int], list[int]]:
        """How many frames of each video must be encoded: the valid ones."""
        return list(query.valid), list(context.valid)

    def forward(self, query: Ragged, context: Ragged) -> Ragged:
        """Attend from query frames (N, D) to context frames (K, D); valid query frames only."""
        queries, keys, values = (
            frames.layout.rounded.pad(project(frames.values)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for frames, project in ((query, self.query), (context, self.key), (context, self.value))
        )
        mask = context.layout.rounded.valid_BL[:, None, None, :]
        probability = DROPOUT if self.training else 0.0
        attended_BHLd = F.scaled_dot_product_attention(queries, keys, values, mask, probability)
        attended_ND = self.output(query.layout.rounded.unpad(attended_BHLd.transpose(1, 2).flatten(2)))
        return query.with_values(self.feed_forward(query.values, attended_ND)).valid()


class DeformableFusion(nn.Module):
    """Each query frame attends to J context frames around it, at offsets that it predicts for each channel group."""

    def __init__(self, architecture: Architecture, offset_scale: float) -> None:
        super().__init__()
        width, self.heads, self.groups = architecture.hidden_size, architecture.fusion_heads, architecture.offset_groups
        group_width, kernel = width // self.groups, architecture.offset_kernel
        self.offset_scale = offset_scale
        self.reach = kernel // 2
        self.padded = architecture.fusion_extent == "padded"
        self.to_query = MLP(width)
        self.to_key = MLP(width)
        self.to_value = MLP(width)
        self.offset_convolution = nn.Conv1d(group_width, group_width, kernel, padding=self.reach, groups=group_width)
        self.offset_output = nn.Conv1d(group_width, architecture.offset_count, 1, bias=False)
        self.logit_scale = nn.Parameter(
            torch.tensor(PUBLISHED_LOGIT_SCALE / (1 if self.padded else math.sqrt(POSITIONS)))
        )
        self.query_positions = PositionEmbedding(width) if architecture.fusion_positions else None
        self.context_positions = PositionEmbedding(width) if architecture.fusion_positions else None
        self.feed_forward = FeedForward(width)

    def required_lengths(self, query: Layout, context: Layout) -> tuple[list[int], list[int]]:
        """How many frames of each video must be encoded: at least its valid ones.

        With extent 'padded' the convolution over query frames and the sampling of context frames reach past the end of
        a video, up to the length of the longest video of the batch.
        """
        if not self.padded:
            return list(query.valid), list(context.valid)
        furthest_B = torch.tensor(query.valid, dtype=torch.float64) - 1 + self.offset_scale
        coordinates = _padded_coordinate(furthest_B, max(query.longest - 1, 1), context.longest).tolist()
        return (
            [min(length + self.reach, query.longest) for length in query.valid],
            [
                max(length, min(context.longest, math.floor(coordinate) + 2))
                for length, coordinate in zip(context.valid, coordinates, strict=True)
            ],
        )

    def forward(self, query: Ragged, context: Ragged) -> Ragged:
        """Attend from query frames (N, D) to context frames (K, D); valid query frames only, (n, D)."""
        if self.query_positions is not None and self.context_positions is not None:
            query, context = self.query_positions(query), self.context_positions(context)
        hidden_ND = ops.relu_dropout(self.to_query.first(query.values), DROPOUT, self.training)
        projected = query.with_values(self.to_query.second(hidden_ND))
        attended_nD = ops.map_videos(self._attend, projected, context)
        valid = query.valid()
        return valid.with_values(self.feed_forward(valid.values, attended_nD))

    def _attend(self, query: Ragged, context: Ragged) -> Tensor:
        """Attention of the valid query frames to their sampling points, (n, D)."""
        index, weight = self._sampling_points(query.values, query.layout, context.layout)
        valid = query.valid()
        points = SamplingPoints(index, weight, valid.layout.lengths, context.layout.lengths)
        # The bias of the keys shifts all logits of a frame alike, which softmax ignores: its gradient is zero.
        logit_scale = self.logit_scale + 0 * self.to_key.second.bias.sum()
        head_width = valid.values.shape[1] // self.heads
        scale = logit_scale * (head_width * (query.layout.longest if self.padded else 1)) ** -0.5
        probability = DROPOUT if self.training else 0.0
        mlps = (self.to_key, self.to_value)
        return ops.deformable_attention(valid.values, context.values, points, *mlps, self.heads, scale, probability)

    def _sampling_points(self, query_ND: Tensor, query: Layout, context: Layout) -> tuple[Tensor, Tensor]:
        """The two context frames around each sampling point and their interpolation weights, (n, J, G, 2)."""
        offsets = self._offsets(Ragged(query_ND, query))
        position_nGJ = offsets.layout.position_N[:, None, None] + offsets.values
        return ops.checkpointed(self._interpolation, position_nGJ.transpose(1, 2), offsets.layout, context)

    def _offsets(self, query: Ragged) -> Ragged:
        """Depthwise convolution, GELU, 1x1 convolution and tanh, for each channel group; valid frames, (n, G, J)."""
        assert self.offset_convolution.bias is not None
        layout = query.layout
        weight_kD = self.offset_convolution.weight[:, 0].repeat(self.groups, 1).t()  # shared by the groups
        padded_BLD = F.pad(layout.pad(query.values), (0, 0, self.reach, self.reach))
        mixed_BLD = self.offset_convolution.bias.repeat(self.groups)
        for tap, weight_D in enumerate(weight_kD):
            mixed_BLD = mixed_BLD + weight_D * padded_BLD[:, tap : tap + layout.max_length]
        hidden = query.with_values(F.gelu(layout.unpad(mixed_BLD))).valid()
        # One block-diagonal product for all groups is faster than a product with few channels for each.
        weight_XD = torch.block_diag(*[self.offset_output.weight[:, :, 0]] * self.groups)
        offsets_nX = F.linear(hidden.values, weight_XD).float().tanh() * self.offset_scale
        return hidden.with_values(offsets_nX.unflatten(-1, (self.groups, -1)))

    def _interpolation(self, position_nJG: Tensor, query: Layout, context: Layout) -> tuple[Tensor, Tensor]:
        """Map positions p in query frames to coordinates u in context frames: the frames around u and their weights.

        extent 'valid', lengths l and m of this video:    u = clamp(p, 0, l-1) * (m-1) / (l-1)
        extent 'padded', longest L and M of the batch:    u = `_padded_coordinate(p)`, frames outside [0, M-1] are zero
        """
        video_n = query.owner_N
        if self.padded:
            last_n11 = torch.full_like(video_n, context.longest - 1)[:, None, None]
            coordinate = _padded_coordinate(position_nJG, max(query.longest - 1, 1), context.longest)
        else:
            last_query_n11, last_n11 = ((layout.valid_B[video_n] - 1)[:, None, None] for layout in (query, context))
            inside = torch.minimum(position_nJG.clamp(min=0), last_query_n11)
            coordinate = inside * (last_n11 / last_query_n11.clamp(min=1))
        below = coordinate.detach().floor()
        fraction = coordinate - below
        index = torch.stack([below, below + 1], -1).int()
        weight = torch.stack([1 - fraction, fraction], -1)
        weight = weight.masked_fill((index < 0) | (index > last_n11[..., None]), 0.0)
        # A frame without weight may not have been encoded: any other of the video stands in for it.
        starts, last_encoded = context.starts_B[video_n], context.lengths_B[video_n] - 1
        index = torch.minimum(index.clamp(min=0), last_encoded[:, None, None, None])
        return (index + starts[:, None, None, None]).int(), weight


class PositionEmbedding(nn.Module):
    """Adds a learned position embedding after a LayerNorm of it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(POSITIONS, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, frames: Ragged) -> Ragged:
        """Frames (N, D) with their positions added."""
        return frames.with_values(frames.values + F.embedding(frames.layout.position_N, self.norm(self.table.weight)))


def _padded_coordinate(position: Tensor, last_L: int, longest_M: int) -> Tensor:
    """Where the published program reads: `grid_sample` over the padded lengths, from -0.5 to M - 0.5."""
    unit = (2 * position / last_L - 1).clamp(-1, 1)
    return ((unit + 1) * longest_M - 1) / 2
