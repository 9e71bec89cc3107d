"""The A3PRVR model: branches, each with its own frame and query encoders, and the fusion between them.

Letters: B videos, Q queries, N rows, K keys, D width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from inspect import signature
from typing import cast

import torch
from torch import Tensor, nn

from method.data.ragged import Ragged
from method.model.architecture import Architecture
from method.model.augmentation import augmented
from method.model.encoders import QueryPooling, SelfAttention, SequenceEncoder, frame_attention
from method.model.fusion import AttentionFusion, DeformableFusion
from method.model.query_weights import QueryWeights
from method.model.scoring import Similarity, similarity
from method.runtime.errors import shown


class Branch(nn.Module):
    """One branch and its head "frames": every frame is a key, and a video scores as well as its best frame.

    Another head is a subclass in `HEADS`, which overrides `encode_videos`, `encode_queries`, `score` or some of them.
    """

    def __init__(self, frame_width: int, architecture: Architecture) -> None:
        super().__init__()
        a = architecture
        self.token_drop, self.feature_noise = a.token_drop, a.feature_noise
        self.frames = SequenceEncoder(a, frame_attention(a), input_width=frame_width, max_length=a.max_frames)
        self.tokens = SequenceEncoder(a, SelfAttention(a), input_width=a.query_width, max_length=a.max_words)
        self.pooling = QueryPooling(a.hidden_size)
        self.key = nn.Linear(a.hidden_size, a.hidden_size, bias=False)

    def encode_videos(self, frames: Ragged) -> Ragged:
        """Encoded, possibly fused frames (N, D) of B videos as the keys (K, D) that queries are compared with."""
        return frames.with_values(self.key(frames.values))

    def encode_queries(self, tokens: Ragged) -> Tensor:
        """Token features of Q queries as one vector each, (Q, D)."""
        if self.training:
            tokens = augmented(tokens, self.token_drop, self.feature_noise)
        return self.pooling(self.tokens(tokens))

    def score(self, keys: Ragged, queries_QD: Tensor) -> Similarity:
        """Scores of all queries against all videos, each from the keys of that video alone."""
        return similarity(keys, queries_QD)

    @property
    def scores_by_cosine(self) -> bool:
        """Whether `score` is that of "frames", which evaluation and search compute faster, from normalised keys."""
        return type(self).score is Branch.score


# A head is one file that adds its class here, imported by `method/model/__init__.py`: `windows.py` is an example.
HEADS: dict[str, type[Branch]] = {"frames": Branch}


def find_head(name: str) -> type[Branch]:
    """The head of this name. ValueError for an unknown one, TypeError for a class that cannot be one."""
    if name not in HEADS:
        raise ValueError(f"head is {shown(name)}, expected one of {', '.join(HEADS)}")
    head = HEADS[name]
    if not (isinstance(head, type) and issubclass(head, Branch)):
        raise TypeError(f"{head!r} is no subclass of Branch")
    for method in ("encode_videos", "encode_queries", "score"):
        try:
            signature(getattr(head, method)).bind(*signature(getattr(Branch, method)).parameters)
        except TypeError as error:
            raise TypeError(f"{head.__name__}.{method} is not called like Branch.{method}: {error}") from error
    return head


class RetrievalModel(nn.Module):
    """Encodes videos into keys and queries into vectors, for each branch.

    Args:
        architecture: the branches and sizes. ValueError or TypeError for a head that is none, as `find_head`.
        head: of every branch; None: the one that the architecture names.
    """

    def __init__(self, architecture: Architecture, head: type[Branch] | None = None) -> None:
        super().__init__()
        self.architecture = architecture
        head, specs = head or find_head(architecture.head), architecture.branches
        self.branches = nn.ModuleDict({name: head(spec.width, architecture) for name, spec in specs.items()})
        # Keyed by the branch whose frames are the attention queries.
        self.fusions = nn.ModuleDict(
            {
                name: AttentionFusion(architecture)
                if architecture.fusion == "attention"
                else DeformableFusion(architecture, specs[name].offset_scale)
                for name in architecture.fusions
            }
        )
        self.temperatures = nn.ParameterDict(
            {branch: nn.Parameter(torch.tensor(1 / 0.07)) for branch in architecture.temperatures}
        )
        self.query_weights = QueryWeights(list(specs), architecture.hidden_size) if architecture.query_weights else None
        self.apply(self._initialize)
        if self.query_weights is not None:
            self.query_weights.reset_parameters()

    def branch(self, name: str) -> Branch:
        """The branch of this name."""
        return cast(Branch, self.branches[name])

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return next(self.parameters()).device

    def _initialize(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.architecture.initializer_range)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def encode_frames(self, streams: Mapping[str, Ragged]) -> dict[str, Ragged]:
        """Features (N, I) of each branch's stream as fused frames (N, D), valid frames only."""
        if self.training:
            drop, noise = self.architecture.frame_drop, self.architecture.feature_noise
            streams = {name: augmented(streams[name], drop, noise) for name in self.branches}
        extended = self._extend(streams)
        frames = {name: self.branch(name).frames(extended[name]) for name in self.branches}
        fused = dict(frames)
        for name, fusion in self._fusions():
            context = frames[self.architecture.fusions[name]]
            if not self.architecture.fusion_gradient:  # no gradient of one branch's loss reaches another's encoder
                context = context.with_values(context.values.detach())
            fused[name] = fusion(frames[name], context)
        return {name: rows.valid() for name, rows in fused.items()}

    def encode_videos(self, streams: Mapping[str, Ragged]) -> dict[str, Ragged]:
        """Features of B videos as keys (K, D) of each branch."""
        return {name: self.branch(name).encode_videos(rows) for name, rows in self.encode_frames(streams).items()}

    def encode_queries(self, tokens: Ragged) -> dict[str, Tensor]:
        """Token features of Q queries as one vector (Q, D) for each branch."""
        return {name: self.branch(name).encode_queries(tokens) for name in self.branches}

    def _fusions(self) -> Iterator[tuple[str, AttentionFusion | DeformableFusion]]:
        yield from cast(Iterable[tuple[str, AttentionFusion | DeformableFusion]], self.fusions.items())

    def _extend(self, streams: Mapping[str, Ragged]) -> dict[str, Ragged]:
        """Append the zero rows past a video's end that its fusions read."""
        lengths = {name: list(streams[name].layout.lengths) for name in self.branches}
        for query, fusion in self._fusions():
            names = (query, self.architecture.fusions[query])
            required = fusion.required_lengths(*(streams[name].layout for name in names))
            for name, rows in zip(names, required, strict=True):
                lengths[name] = [max(pair) for pair in zip(lengths[name], rows, strict=True)]
        return {name: streams[name].extended(rows) for name, rows in lengths.items()}
