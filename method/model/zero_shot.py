"""Zero-shot CLIP as a model: frames and sentences are embedded by CLIP alone, and nothing is trained.

Radford et al., *Learning Transferable Visual Models From Natural Language Supervision*, ICML 2021. The score of a video
is the largest cosine of the sentence's embedding and the embedding of a frame.

Letters: N frames of all videos, Q queries, D width of CLIP's embeddings.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from method.data.features import OBJECT_KEY
from method.data.ragged import Ragged
from method.model.architecture import Architecture
from method.model.branch_spec import BranchSpec
from method.model.retrieval import Branch, RetrievalModel

ZERO_SHOT = "zero_shot"  # name of the branch


class EmbeddingBranch(Branch):
    """A branch without weights: features of frames are the keys (N, D), and the one row of a query is its vector."""

    def __init__(self, frame_width: int, architecture: Architecture) -> None:
        nn.Module.__init__(self)
        self.frames, self.tokens = nn.Identity(), nn.Identity()  # type: ignore[assignment]
        self.pooling, self.key = nn.Identity(), nn.Identity()  # type: ignore[assignment]

    def encode_queries(self, tokens: Ragged) -> Tensor:
        """The single rows of Q queries as their vectors (Q, D)."""
        return tokens.values


class ZeroShotModel(RetrievalModel):
    """CLIP's own retrieval: one branch, `zero_shot`, over the stream `clip_feat`.

    Args:
        width: of CLIP's embeddings, the D of frames and sentences.
        max_frames: longer videos are averaged to so many frames, as for every model.
    """

    def __init__(self, width: int, max_frames: int) -> None:
        architecture = Architecture(
            branches={ZERO_SHOT: BranchSpec(OBJECT_KEY, width)},
            query_width=width,
            hidden_size=width,
            heads=1,
            max_frames=max_frames,
            max_words=1,
            input_dropout=0.0,
            dropout=0.0,
            initializer_range=0.0,
            fusion="none",
            fusion_extent="valid",
            fusion_positions=False,
            fusion_heads=1,
            offset_groups=1,
            offset_count=1,
            offset_kernel=1,
            temperatures=(),
        )
        super().__init__(architecture, EmbeddingBranch)
        self.register_buffer("_place", torch.empty(0), persistent=False)

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        place: Tensor = self.get_buffer("_place")
        return place.device
