"""The A3PRVR model: two branches, each with its own frame and query encoders, and the fusion between them.

Letters: B videos, Q queries, N rows, D width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from method.data.ragged import Ragged
from method.model.architecture import Architecture
from method.model.encoders import QueryPooling, SequenceEncoder
from method.model.fusion import AttentionFusion, DeformableFusion

SECOND_OFFSET_SCALE = 2.0


class Branch(nn.Module):
    """One branch: its frame encoder and frame embedding, its query encoder and pooling."""

    def __init__(self, frame_width: int, architecture: Architecture) -> None:
        super().__init__()
        a = architecture
        shared = (a.hidden_size, a.heads)
        self.frames = SequenceEncoder(frame_width, *shared, a.max_frames, a.input_dropout, a.dropout)
        self.tokens = SequenceEncoder(a.query_width, *shared, a.max_words, a.input_dropout, a.dropout)
        self.pooling = QueryPooling(a.hidden_size)
        self.key = nn.Linear(a.hidden_size, a.hidden_size, bias=False)

    def encode_queries(self, tokens: Ragged) -> Tensor:
        """Token features of Q queries as one vector each, (Q, D)."""
        return self.pooling(self.tokens(tokens))

    def embed_frames(self, frames: Ragged) -> Ragged:
        """Encoded, possibly fused frames (N, D) as the frame embeddings that queries are compared with."""
        return frames.with_values(self.key(frames.values))


class RetrievalModel(nn.Module):
    """Encodes videos into frame embeddings and queries into vectors, for each branch.

    Args:
        architecture: the sizes; a branch whose width is None does not exist.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        widths = {"action": architecture.action_width, "object": architecture.object_width}
        self.branches = nn.ModuleDict(
            {name: Branch(width, architecture) for name, width in widths.items() if width is not None}
        )
        # Keyed by the branch whose frames are the attention queries.
        self.fusions = nn.ModuleDict(
            {
                name: AttentionFusion(architecture.hidden_size, architecture.fusion_heads)
                if architecture.fusion == "attention"
                else DeformableFusion(architecture, scale)
                for name, scale in _offset_scales(architecture).items()
            }
        )
        self.temperatures = nn.ParameterDict(
            {branch: nn.Parameter(torch.tensor(1 / 0.07)) for branch in architecture.temperatures}
        )
        self.apply(self._initialize)

    def branch(self, name: str) -> Branch:
        """The branch 'action' or 'object'."""
        return cast(Branch, self.branches[name])

    def _initialize(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.architecture.initializer_range)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def encode_frames(self, streams: Mapping[str, Ragged]) -> dict[str, Ragged]:
        """Features (N, I) of each branch's stream as fused frames (N, D), valid frames only."""
        extended = self._extend(streams)
        frames = {name: self.branch(name).frames(extended[name]) for name in self.branches}
        fused = dict(frames)
        for name, fusion in self._fusions():
            context = frames[_other(name)]
            # No gradient of one branch's loss reaches the other's encoder.
            fused[name] = fusion(frames[name], context.with_values(context.values.detach()))
        return {name: rows.valid() for name, rows in fused.items()}

    def encode_videos(self, streams: Mapping[str, Ragged]) -> dict[str, Ragged]:
        """Features of B videos as frame embeddings (N, D) of each branch."""
        return {name: self.branch(name).embed_frames(rows) for name, rows in self.encode_frames(streams).items()}

    def encode_queries(self, tokens: Ragged) -> dict[str, Tensor]:
        """Token features of Q queries as one vector (Q, D) for each branch."""
        return {name: self.branch(name).encode_queries(tokens) for name in self.branches}

    def _fusions(self) -> Iterator[tuple[str, AttentionFusion | DeformableFusion]]:
        yield from cast(Iterable[tuple[str, AttentionFusion | DeformableFusion]], self.fusions.items())

    def _extend(self, streams: Mapping[str, Ragged]) -> dict[str, Ragged]:
        """Append the zero rows past a video's end that its fusions read."""
        lengths = {name: list(streams[name].layout.lengths) for name in self.branches}
        for query, fusion in self._fusions():
            names = (query, _other(query))
            required = fusion.required_lengths(*(streams[name].layout for name in names))
            for name, rows in zip(names, required, strict=True):
                lengths[name] = [max(pair) for pair in zip(lengths[name], rows, strict=True)]
        return {name: streams[name].extended(rows) for name, rows in lengths.items()}


def _other(branch: str) -> str:
    """The branch whose frames are the context of this one's."""
    return "object" if branch == "action" else "action"


def _offset_scales(architecture: Architecture) -> dict[str, float]:
    """The branches whose frames are queries of a fusion, and its largest offset."""
    if architecture.fusion == "none":
        return {}
    queries = {"i3d_q": ("action",), "clip_q": ("object",), "double_q": ("action", "object")}[architecture.fusion_asks]
    scales = (architecture.offset_scale, SECOND_OFFSET_SCALE)
    return dict(zip(queries, scales, strict=False))
