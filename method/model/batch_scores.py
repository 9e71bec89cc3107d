"""What the loss terms are functions of: the scores of a batch, and their options.

Letters: X branches, Q captions, B videos, E edited captions, D width. labels_Q[q] is the video of
caption q in the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from method.data.ragged import Ragged

NEGATIVE_QUERIES = "negative_queries"
TEXT_STRUCTURE = "text_structure"
OPTIMAL_MATCHING = "optimal_matching"
FUSED = "fused"  # the row of the fused score, beside or instead of those of the branches
PUBLISHED = {"triplet": 1.0, "nce": 0.02, NEGATIVE_QUERIES: 0.005}  # the published terms and their weights


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """Options of the losses.

    hard_pool_size: number of highest-scoring videos that a hard negative is drawn from.
    label_smoothing: of the hard negative query loss.
    nce_temperature: that the cosines of the cosine NCE loss are divided by.
    fused: 'off'; 'beside': the fused score has losses like a branch; 'instead': only it has, except that hard negative
        queries are compared in each branch.
    fused_weight: of the fused score's terms, relative to those of a branch.
    fusion_weight: of the action branch in the fused score; None: fitted, with losses at the weight 0.5.
    false_negatives: 'off'; 'equal': captions with the text of a video's caption and that video are no negatives of each
        other; 'similar': further, less so the more similar the texts are above similar_from, a cosine.
    soft_targets: fraction of the cosine NCE loss that is to a teacher's distribution, the softmax of its scores divided
        by soft_temperature.
    soft_teacher: 'videos': the similarity of videos; 'average': the scores of the model with averaged weights.
    diverse_scale, diverse_margin: alpha and delta of the query diverse loss.
    weights: the terms that are summed, by their names in `LOSSES`, and the weight of each.
    """

    margin: float = 0.2
    hard_pool_size: int = 20
    label_smoothing: float = 0.2
    nce_temperature: float = 0.07
    fused: str = "off"
    fused_weight: float = 1.0
    fusion_weight: float | None = 0.5
    false_negatives: str = "off"
    similar_from: float = 0.9
    soft_targets: float = 0.0
    soft_temperature: float = 0.1
    soft_teacher: str = "videos"
    diverse_scale: float = 32.0
    diverse_margin: float = 0.15
    weights: Mapping[str, float] = field(default_factory=lambda: dict(PUBLISHED))


@dataclass(frozen=True)
class EditScores:
    """What the hard negative query loss compares: captions and their edits, with the best frame of their own video.

    best_QD: embedding of the best own frame of each caption, as `best_own_frames` gives it.
    owner_E: the caption that was edited.
    """

    best_QD: Tensor
    queries_QD: Tensor
    edited_ED: Tensor
    owner_E: Tensor
    temperature: Tensor


@dataclass(frozen=True)
class BatchScores:
    """What a loss term may use of a batch. Scores, queries and labels are of the whole batch, on every process.

    branches: the names of the X branches, in order; the fused score counts as one where it is trained.
    cosine_XQB, raw_XQB: best cosine and best dot product of every caption and video.
    queries: branch -> (Q, D).
    shard: the captions of this process. A term that compares queries with each other sums over these as anchors and
        passes its part through `sum`.
    negative_weight_QB: how much a video counts as a negative of a caption, and the caption as one of the video's, from
        0, as for its own, to 1; None: all negatives fully.
    teacher_XQB: scores of a teacher for the soft targets, if any; X may be 1.
    tokens_QD: mean token features, where a term needs them.
    hard: whether negatives are the hardest ones instead of random ones.
    first_video: the index in the batch of the first of this process's videos.
    keys, edits: those of this process: the keys of its videos, and where they are trained with edits its captions.
    generator: draws whatever is random; on every process from the same seed.
    sum: the sum over all processes of what each computed from its keys, edits or shard.
    """

    branches: tuple[str, ...]
    cosine_XQB: Tensor
    raw_XQB: Tensor
    labels_Q: Tensor
    queries: Mapping[str, Tensor] = field(default_factory=dict)
    shard: slice = field(default_factory=lambda: slice(None))
    first_video: int = 0
    negative_weight_QB: Tensor | None = None
    teacher_XQB: Tensor | None = None
    tokens_QD: Tensor | None = None
    hard: bool = False
    keys: Mapping[str, Ragged] = field(default_factory=dict)
    edits: Mapping[str, EditScores] = field(default_factory=dict)
    generator: torch.Generator | None = None
    sum: Callable[[Tensor], Tensor] = lambda part: part

    @property
    def own_QB(self) -> Tensor:
        """Whether a video is the caption's own."""
        return self.labels_Q[:, None] == torch.arange(self.cosine_XQB.shape[-1], device=self.labels_Q.device)

    @property
    def excluded_QB(self) -> Tensor:
        """Whether a video is no negative of the caption, and the caption none of the video's."""
        return self.own_QB if self.negative_weight_QB is None else self.negative_weight_QB == 0

    def weigh(self, logits_XQB: Tensor) -> Tensor:
        """Logits whose exponentials count by the weights of the negatives."""
        if self.negative_weight_QB is None:
            return logits_XQB
        return logits_XQB + self.negative_weight_QB.masked_fill(self.own_QB, 1.0).log()

    def by_branch(self, values_X: Tensor) -> dict[str, Tensor]:
        """A value of each branch, by name."""
        return dict(zip(self.branches, values_X.unbind(), strict=True))
