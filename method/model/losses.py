"""Loss terms as functions of scores, without loops over videos or captions, and the table of them.

Letters: X branches, Q captions, B videos, P candidate videos, E edited captions, D width. labels_Q[q] is the video of
caption q in the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from method.data.ragged import Ragged
from method.model.batch_scores import (
    FUSED,
    NEGATIVE_QUERIES,
    OPTIMAL_MATCHING,
    PUBLISHED,
    TEXT_STRUCTURE,
    BatchScores,
    EditScores,
    LossSettings,
)
from method.model.contrastive import cosine_nce_loss, nce_loss
from method.model.matching import optimal_matching_loss
from method.model.query_losses import query_diverse_loss, text_structure_loss
from method.model.scoring import Similarity

__all__ = [
    "FUSED",
    "LOSSES",
    "NEGATIVE_QUERIES",
    "OPTIMAL_MATCHING",
    "TEXT_STRUCTURE",
    "BatchScores",
    "EditScores",
    "Loss",
    "LossSettings",
    "best_own_frames",
    "cosine_nce_loss",
    "edit_cross_entropy",
    "nce_loss",
    "negative_query_loss",
    "optimal_matching_loss",
    "query_diverse_loss",
    "text_structure_loss",
    "total",
    "triplet_loss",
    "weighted_terms",
]  # fmt: skip


def triplet_loss(scores: BatchScores, settings: LossSettings) -> dict[str, Tensor]:
    """Margin loss of each branch in both directions, each averaged over its anchors; zero without negatives.

    Negatives are not drawn if their weight is 0, and otherwise their loss is multiplied by it.
    """
    # All branches at once: on a GPU, launching small operations takes longer than running them.
    cosine_XQB, labels_Q, own_QB = scores.cosine_XQB, scores.labels_Q, scores.own_QB
    videos = cosine_XQB.shape[-1]
    if videos < 2:
        return scores.by_branch(cosine_XQB.sum((-2, -1)) * 0.0)
    negatives_XQB = cosine_XQB.detach().masked_fill(scores.excluded_QB, -torch.inf)
    own_XQ = _gather_videos(cosine_XQB, labels_Q.expand(cosine_XQB.shape[:-1]))

    # Video to text: mean of the video's captions against one caption of another video.
    drawn_XQB = negatives_XQB if scores.hard else random_scores(negatives_XQB, scores.generator)
    chosen_X1B = drawn_XQB.argmax(dim=-2, keepdim=True)
    negative_XB = cosine_XQB.gather(-2, chosen_X1B).squeeze(-2)
    positive_XB = torch.zeros_like(negative_XB).index_add(-1, labels_Q, own_XQ) / own_QB.sum(0).clamp(min=1)
    video_to_text_XB = (settings.margin + negative_XB - positive_XB).clamp(min=0)

    # Text to video: against another video, from `hard_pool_size` candidates if hard.
    if scores.hard:
        chosen_XQ = _draw_hard(negatives_XQB, min(settings.hard_pool_size, videos - 1), scores)
    else:
        chosen_XQ = random_scores(negatives_XQB, scores.generator).argmax(dim=-1)
    text_to_video_XQ = (settings.margin + _gather_videos(cosine_XQB, chosen_XQ) - own_XQ).clamp(min=0)
    if scores.negative_weight_QB is not None:
        weight_XQB = scores.negative_weight_QB.expand_as(cosine_XQB)
        video_to_text_XB = video_to_text_XB * weight_XQB.gather(-2, chosen_X1B).squeeze(-2)
        text_to_video_XQ = text_to_video_XQ * _gather_videos(weight_XQB, chosen_XQ)
    return scores.by_branch(video_to_text_XB.mean(-1) + text_to_video_XQ.mean(-1))


def _draw_hard(negatives_XQB: Tensor, pool: int, scores: BatchScores) -> Tensor:
    """One of the highest-scoring `pool` negatives of each caption, (X, Q), at random."""
    candidates_XQP = negatives_XQB.topk(pool).indices
    shape, device = candidates_XQP.shape[:-1], candidates_XQP.device
    if scores.negative_weight_QB is None:
        drawn_XQ = torch.randint(0, pool, shape, generator=scores.generator, device=device)
    else:  # a caption may have fewer negatives
        count_Q = (~scores.excluded_QB).sum(-1).clamp(1, pool)
        drawn_XQ = (torch.rand(shape, generator=scores.generator, device=device) * count_Q).long()
        drawn_XQ = torch.minimum(drawn_XQ, count_Q - 1)
    return _gather_videos(candidates_XQP, drawn_XQ)


def _gather_videos(values_XQB: Tensor, video_XQ: Tensor) -> Tensor:
    """One video's value for each caption, (X, Q)."""
    return values_XQB.gather(-1, video_XQ.unsqueeze(-1)).squeeze(-1)


def random_scores(negatives_XQB: Tensor, generator: torch.Generator | None) -> Tensor:
    """Random scores, -inf where the negatives are -inf, so that argmax draws uniformly from the others."""
    random_XQB = torch.rand(negatives_XQB.shape, generator=generator, device=negatives_XQB.device)
    return random_XQB.masked_fill(negatives_XQB.isneginf(), -torch.inf)


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
    "triplet": Loss(triplet_loss, weight=PUBLISHED["triplet"]),
    "nce": Loss(nce_loss, weight=PUBLISHED["nce"]),
    "cosine_nce": Loss(cosine_nce_loss, weight=0.1),
    "query_diverse": Loss(query_diverse_loss, weight=0.005),
    TEXT_STRUCTURE: Loss(text_structure_loss, weight=0.1),
    OPTIMAL_MATCHING: Loss(optimal_matching_loss, weight=0.1),
    NEGATIVE_QUERIES: Loss(negative_query_loss, weight=PUBLISHED[NEGATIVE_QUERIES]),
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
