"""Losses of one step, without a loop over videos or captions.

Letters: X branches, Q captions, B videos, P videos of a pool, E edited captions, D width. labels_Q[q] is the batch's
video of caption q. Where several processes train together, edited captions are only those of this process, and so is
what belongs to them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from method.data.edits import EditedQueries
from method.data.ragged import Ragged
from method.model.retrieval import RetrievalModel
from method.model.scoring import Similarity, similarity
from method.training.sharded_batch import Share

NCE_WEIGHT = 0.02


@dataclass(frozen=True)
class LossSettings:
    """What the losses take from the options.

    hard_pool_size: how many of the highest-scoring videos a hard negative is drawn from.
    """

    margin: float
    hard_pool_size: int
    negative_weight: float
    label_smoothing: float


def training_losses(
    model: RetrievalModel,
    share: Share,
    settings: LossSettings,
    hard: bool,
    edits: Mapping[str, EditedQueries],
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Every term of the loss of a whole batch by name, weighted, so that their sum is what is minimised.

    Args:
        share: the preprocessed features of the batch, or of this process's share of it.
        hard: whether triplet negatives are the hardest ones instead of random ones.
        edits: edited captions of the share, for each branch that has any.
        generator: draws the random negatives; on every process from the same seed.
    """
    batch = share.batch
    assert batch.words is not None
    keys, own_queries = model.encode_videos(batch.streams), model.encode_queries(batch.words)
    queries = share.queries(own_queries)
    scores = share.scores({name: similarity(keys[name], queries[name]) for name in model.branches})
    labels_Q = share.labels(batch.labels_Q)
    # Both branches at once: on a GPU, small operations take as long as they are many.
    cosine_XQB = torch.stack([of_branch.cosine_QB for of_branch in scores.values()])
    raw_XQB = torch.stack([of_branch.raw_QB for of_branch in scores.values()])
    triplet_X = triplet_loss(cosine_XQB, labels_Q, settings, hard, generator).unbind()
    nce_X = (NCE_WEIGHT * nce_loss(raw_XQB, labels_Q)).unbind()
    terms = {}
    for name, triplet, nce in zip(scores, triplet_X, nce_X, strict=True):
        terms[f"{name}/triplet"], terms[f"{name}/nce"] = triplet, nce
        if name in share.edited:
            own_QD = own_queries[name][: len(batch.labels_Q)]
            if name in edits:
                edited_ED, owner_E = model.branch(name).encode_queries(edits[name].queries), edits[name].owner_E
            else:  # other processes have some
                edited_ED, owner_E = own_QD[:0], batch.labels_Q[:0]
            best_QD = own_best_frames(keys[name], scores[name], batch.labels_Q)
            temperature, smoothing = model.temperatures[name], settings.label_smoothing
            loss, count = negative_query_loss(best_QD, own_QD, edited_ED, owner_E, temperature, smoothing)
            terms[f"{name}/negative_queries"] = settings.negative_weight * (share.sum(loss) / share.sum(count))
    return terms


def triplet_loss(
    cosine_XQB: Tensor, labels_Q: Tensor, settings: LossSettings, hard: bool, generator: torch.Generator | None = None
) -> Tensor:
    """Margin loss in both directions, each averaged over its anchors; zero where an anchor has no negative; (X,)."""
    videos = cosine_XQB.shape[-1]
    if videos < 2:
        return cosine_XQB.sum((-2, -1)) * 0.0
    own_QB = labels_Q[:, None] == torch.arange(videos, device=labels_Q.device)
    negatives_XQB = cosine_XQB.detach().masked_fill(own_QB, -torch.inf)
    own_XQ = _of_videos(cosine_XQB, labels_Q.expand(cosine_XQB.shape[:-1]))

    # Video to text: the mean of its captions against one caption of another video.
    chosen_XB = (negatives_XQB if hard else _random_like(negatives_XQB, generator)).argmax(dim=-2)
    negative_XB = cosine_XQB.gather(-2, chosen_XB.unsqueeze(-2)).squeeze(-2)
    positive_XB = torch.zeros_like(negative_XB).index_add(-1, labels_Q, own_XQ) / own_QB.sum(0).clamp(min=1)
    video_to_text_X = (settings.margin + negative_XB - positive_XB).clamp(min=0).mean(-1)

    # Text to video: one of the pool's videos.
    if hard:
        candidates_XQP = negatives_XQB.topk(min(settings.hard_pool_size, videos - 1)).indices
        pool, shape = candidates_XQP.shape[-1], own_XQ.shape
        drawn_XQ = torch.randint(0, pool, shape, generator=generator, device=labels_Q.device)
        chosen_XQ = _of_videos(candidates_XQP, drawn_XQ)
    else:
        chosen_XQ = _random_like(negatives_XQB, generator).argmax(dim=-1)
    text_to_video_X = (settings.margin + _of_videos(cosine_XQB, chosen_XQ) - own_XQ).clamp(min=0).mean(-1)
    return video_to_text_X + text_to_video_X


def _of_videos(values_XQB: Tensor, video_XQ: Tensor) -> Tensor:
    """The value of one video for each caption, (X, Q)."""
    return values_XQB.gather(-1, video_XQ.unsqueeze(-1)).squeeze(-1)


def _random_like(negatives_XQB: Tensor, generator: torch.Generator | None) -> Tensor:
    """Random scores that keep excluded pairs at minus infinity, so that argmax draws evenly from the others."""
    random_XQB = torch.rand(negatives_XQB.shape, generator=generator, device=negatives_XQB.device)
    return random_XQB.masked_fill(negatives_XQB.isneginf(), -torch.inf)


def nce_loss(raw_XQB: Tensor, labels_Q: Tensor) -> Tensor:
    """Contrast each caption with all videos and each video with all captions, averaged over each; (X,)."""
    own_QB = labels_Q[:, None] == torch.arange(raw_XQB.shape[-1], device=labels_Q.device)
    text_to_video_XQ = raw_XQB.logsumexp(-1) - _of_videos(raw_XQB, labels_Q.expand(raw_XQB.shape[:-1]))
    video_to_text_XB = raw_XQB.logsumexp(-2) - raw_XQB.masked_fill(~own_QB, -torch.inf).logsumexp(-2)
    return text_to_video_XQ.mean(-1) + video_to_text_XB.mean(-1)


def own_best_frames(keys: Ragged, scores: Similarity, labels_Q: Tensor) -> Tensor:
    """The key of the frame of its own video that a caption scores highest, (Q, D)."""
    frame_Q = scores.best_frame_QB.gather(1, labels_Q[:, None]).squeeze(1)
    return keys.values[keys.layout.starts_B[labels_Q] + frame_Q]


def negative_query_loss(
    best_QD: Tensor, queries_QD: Tensor, edited_ED: Tensor, owner_E: Tensor, temperature: Tensor, smoothing: float
) -> tuple[Tensor, Tensor]:
    """Cross entropy that puts a caption before its edits on its own best moment.

    The sum over the captions that have edits, with label smoothing over each caption's own number of choices, and how
    many captions these are.
    """
    true_Q = temperature * torch.cosine_similarity(best_QD.float(), queries_QD.float(), dim=-1)
    edited_E = temperature * torch.cosine_similarity(best_QD.float()[owner_E], edited_ED.float(), dim=-1)
    count_Q = torch.zeros_like(true_Q).index_add(0, owner_E, torch.ones_like(edited_E))
    # A softmax over each caption's choices, its largest logit taken out of the exponentials.
    largest_Q = true_Q.detach().scatter_reduce(0, owner_E, edited_E.detach(), "amax")
    total_Q = (true_Q - largest_Q).exp().index_add(0, owner_E, (edited_E - largest_Q[owner_E]).exp())
    log_total_Q = total_Q.log() + largest_Q
    sum_Q = true_Q.index_add(0, owner_E, edited_E)
    choices_Q = count_Q + 1
    smoothed_Q = (1 - smoothing) * true_Q + smoothing * sum_Q / choices_Q
    has_edits_Q = count_Q > 0
    return ((log_total_Q - smoothed_Q) * has_edits_Q).sum(), has_edits_Q.sum()


def total(terms: Mapping[str, Tensor]) -> Tensor:
    """The sum of all terms."""
    return torch.stack(list(terms.values())).sum()
