"""Loss terms as functions of scores, without loops over videos or captions, and the table of them.

Letters: X branches, Q captions, B videos, P candidate videos, E edited captions, D width. labels_Q[q] is the video of
caption q in the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from method.data.ragged import Ragged
from method.model.scoring import Similarity

NEGATIVE_QUERIES = "negative_queries"
FUSED = "fused"  # the row of the fused score, beside or instead of those of the branches
_PUBLISHED = ("triplet", "nce", NEGATIVE_QUERIES)


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """Options of the losses.

    hard_pool_size: number of highest-scoring videos that a hard negative is drawn from.
    label_smoothing: of the hard negative query loss.
    nce_temperature: that the cosines of the cosine NCE loss are divided by.
    fused: 'off'; 'beside': the fused score has losses like a branch; 'instead': only it has, except that hard negative
        queries are compared in each branch.
    fused_weight: of the fused score's terms, relative to those of a branch.
    fusion_weight: of the action branch in the fused score.
    weights: the terms that are summed, by their names in `LOSSES`, and the weight of each.
    """

    margin: float = 0.2
    hard_pool_size: int = 20
    label_smoothing: float = 0.2
    nce_temperature: float = 0.07
    fused: str = "off"
    fused_weight: float = 1.0
    fusion_weight: float = 0.5
    weights: Mapping[str, float] = field(default_factory=lambda: {name: LOSSES[name].weight for name in _PUBLISHED})


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
    hard: whether negatives are the hardest ones instead of random ones.
    keys, edits: those of this process: the keys of its videos, and where they are trained with edits its captions.
    generator: draws whatever is random; on every process from the same seed.
    sum: the sum over all processes of what each computed from its keys or edits.
    """

    branches: tuple[str, ...]
    cosine_XQB: Tensor
    raw_XQB: Tensor
    labels_Q: Tensor
    queries: Mapping[str, Tensor] = field(default_factory=dict)
    hard: bool = False
    keys: Mapping[str, Ragged] = field(default_factory=dict)
    edits: Mapping[str, EditScores] = field(default_factory=dict)
    generator: torch.Generator | None = None
    sum: Callable[[Tensor], Tensor] = lambda part: part

    @property
    def own_QB(self) -> Tensor:
        """Whether a video is the caption's own."""
        return self.labels_Q[:, None] == torch.arange(self.cosine_XQB.shape[-1], device=self.labels_Q.device)

    def by_branch(self, values_X: Tensor) -> dict[str, Tensor]:
        """A value of each branch, by name."""
        return dict(zip(self.branches, values_X.unbind(), strict=True))


def triplet_loss(scores: BatchScores, settings: LossSettings) -> dict[str, Tensor]:
    """Margin loss of each branch in both directions, each averaged over its anchors; zero without negatives."""
    # All branches at once: on a GPU, launching small operations takes longer than running them.
    cosine_XQB, labels_Q, own_QB = scores.cosine_XQB, scores.labels_Q, scores.own_QB
    videos = cosine_XQB.shape[-1]
    if videos < 2:
        return scores.by_branch(cosine_XQB.sum((-2, -1)) * 0.0)
    negatives_XQB = cosine_XQB.detach().masked_fill(own_QB, -torch.inf)
    own_XQ = _gather_videos(cosine_XQB, labels_Q.expand(cosine_XQB.shape[:-1]))

    # Video to text: mean of the video's captions against one caption of another video.
    drawn_XQB = negatives_XQB if scores.hard else random_scores(negatives_XQB, scores.generator)
    negative_XB = cosine_XQB.gather(-2, drawn_XQB.argmax(dim=-2, keepdim=True)).squeeze(-2)
    positive_XB = torch.zeros_like(negative_XB).index_add(-1, labels_Q, own_XQ) / own_QB.sum(0).clamp(min=1)
    video_to_text_X = (settings.margin + negative_XB - positive_XB).clamp(min=0).mean(-1)

    # Text to video: against another video, from `hard_pool_size` candidates if hard.
    if scores.hard:
        candidates_XQP = negatives_XQB.topk(min(settings.hard_pool_size, videos - 1)).indices
        pool, shape = candidates_XQP.shape[-1], own_XQ.shape
        drawn_XQ = torch.randint(0, pool, shape, generator=scores.generator, device=labels_Q.device)
        chosen_XQ = _gather_videos(candidates_XQP, drawn_XQ)
    else:
        chosen_XQ = random_scores(negatives_XQB, scores.generator).argmax(dim=-1)
    text_to_video_X = (settings.margin + _gather_videos(cosine_XQB, chosen_XQ) - own_XQ).clamp(min=0).mean(-1)
    return scores.by_branch(video_to_text_X + text_to_video_X)


def _gather_videos(values_XQB: Tensor, video_XQ: Tensor) -> Tensor:
    """One video's value for each caption, (X, Q)."""
    return values_XQB.gather(-1, video_XQ.unsqueeze(-1)).squeeze(-1)


def random_scores(negatives_XQB: Tensor, generator: torch.Generator | None) -> Tensor:
    """Random scores, -inf where the negatives are -inf, so that argmax draws uniformly from the others."""
    random_XQB = torch.rand(negatives_XQB.shape, generator=generator, device=negatives_XQB.device)
    return random_XQB.masked_fill(negatives_XQB.isneginf(), -torch.inf)


def nce_loss(scores: BatchScores, settings: LossSettings) -> dict[str, Tensor]:
    """Contrastive loss of each branch on raw scores, in both directions."""
    return scores.by_branch(_contrastive(scores.raw_XQB, scores))


def cosine_nce_loss(scores: BatchScores, settings: LossSettings) -> dict[str, Tensor]:
    """The same on cosines divided by a temperature, which long embeddings cannot lower (InfoNCE, van den Oord 2018)."""
    return scores.by_branch(_contrastive(scores.cosine_XQB / settings.nce_temperature, scores))


def _contrastive(logits_XQB: Tensor, scores: BatchScores) -> Tensor:
    """Captions against all videos and videos against all captions, each averaged; (X,)."""
    own_XQ = _gather_videos(logits_XQB, scores.labels_Q.expand(logits_XQB.shape[:-1]))
    text_to_video_XQ = logits_XQB.logsumexp(-1) - own_XQ
    video_to_text_XB = logits_XQB.logsumexp(-2) - logits_XQB.masked_fill(~scores.own_QB, -torch.inf).logsumexp(-2)
    return text_to_video_XQ.mean(-1) + video_to_text_XB.mean(-1)


def best_own_frames(frames: Ragged, scores: Similarity, labels_Q: Tensor) -> Tensor:
    """The embedding of the frame of its own video that a caption scores highest, (Q, D)."""
    frame_Q = scores.best_frame_QB.gather(1, labels_Q[:, None]).squeeze(1)
    return frames.values[frames.layout.starts_B[labels_Q] + frame_Q]


def negative_query_loss(scores: BatchScores, settings: LossSettings) -> dict[str, Tensor]:
    """Cross entropy of captions against their edits, on the captions' best frames, of each branch with edits.

    The mean over the captions that have some, with label smoothing over each caption's own number of choices.
    """
    terms = {}
    for branch, edits in scores.edits.items():
        loss, count = edit_cross_entropy(edits, settings.label_smoothing)
        terms[branch] = scores.sum(loss) / scores.sum(count)
    return terms


def edit_cross_entropy(scores: EditScores, smoothing: float) -> tuple[Tensor, Tensor]:
    """The sum of the cross entropy over the captions that have edits, and their number."""
    best_QD, owner_E = scores.best_QD.float(), scores.owner_E
    true_Q = scores.temperature * torch.cosine_similarity(best_QD, scores.queries_QD.float(), dim=-1)
    edited_E = scores.temperature * torch.cosine_similarity(best_QD[owner_E], scores.edited_ED.float(), dim=-1)
    count_Q = torch.zeros_like(true_Q).index_add(0, owner_E, torch.ones_like(edited_E))
    # logsumexp over each caption's choices.
    largest_Q = true_Q.detach().scatter_reduce(0, owner_E, edited_E.detach(), "amax")
    total_Q = (true_Q - largest_Q).exp().index_add(0, owner_E, (edited_E - largest_Q[owner_E]).exp())
    log_total_Q = total_Q.log() + largest_Q
    sum_Q = true_Q.index_add(0, owner_E, edited_E)
    smoothed_Q = (1 - smoothing) * true_Q + smoothing * sum_Q / (count_Q + 1)
    has_edits_Q = count_Q > 0
    return ((log_total_Q - smoothed_Q) * has_edits_Q).sum(), has_edits_Q.sum()


@dataclass(frozen=True)
class Loss:
    """A loss term. terms: its value for each branch that has one. weight: default of its option `--<name>_weight`."""

    terms: Callable[[BatchScores, LossSettings], Mapping[str, Tensor]]
    weight: float


# A loss term is one function and one line here. `--losses` names those that are summed; the last one is for hard
# negative queries, and `--neg_query_loss` and `--neg_query_loss_weight` are its options.
LOSSES: dict[str, Loss] = {
    "triplet": Loss(triplet_loss, weight=1.0),
    "nce": Loss(nce_loss, weight=0.02),
    "cosine_nce": Loss(cosine_nce_loss, weight=0.1),
    NEGATIVE_QUERIES: Loss(negative_query_loss, weight=0.005),
}


def weighted_terms(scores: BatchScores, settings: LossSettings) -> dict[str, Tensor]:
    """All weighted terms by 'branch/loss', in the order of the branches."""
    of_loss = {name: LOSSES[name].terms(scores, settings) for name in settings.weights}
    of_branch = {FUSED: settings.fused_weight}
    return {
        f"{branch}/{name}": of_branch.get(branch, 1.0) * settings.weights[name] * terms[branch]
        for branch in dict.fromkeys((*scores.branches, *scores.queries))
        for name, terms in of_loss.items()
        if branch in terms
    }


def total(terms: Mapping[str, Tensor]) -> Tensor:
    """The sum of all terms."""
    return torch.stack(list(terms.values())).sum()
