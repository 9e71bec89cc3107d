"""Losses of one step, without a loop over videos or captions.

Letters: Q captions, B videos, E edited captions, D width. labels_Q[q] is the batch's video of caption q. Where several
processes train together, edited captions are only those of this process, and so is what belongs to them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from method.data.edited_queries import EditedQueries
from method.data.ragged import Ragged
from method.model.retrieval import RetrievalModel
from method.model.scoring import Similarity, similarity
from method.training.share import Share

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
    terms = {}
    for name in model.branches:
        terms[f"{name}/triplet"] = triplet_loss(scores[name].cosine_QB, labels_Q, settings, hard, generator)
        terms[f"{name}/nce"] = NCE_WEIGHT * nce_loss(scores[name].raw_QB, labels_Q)
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
    cosine_QB: Tensor, labels_Q: Tensor, settings: LossSettings, hard: bool, generator: torch.Generator | None = None
) -> Tensor:
    """Margin loss in both directions, each averaged over its anchors; zero where an anchor has no negative."""
    captions, videos = cosine_QB.shape
    if videos < 2:
        return cosine_QB.sum() * 0.0
    own_QB = labels_Q[:, None] == torch.arange(videos, device=labels_Q.device)
    negatives_QB = cosine_QB.detach().masked_fill(own_QB, -torch.inf)
    every_Q = torch.arange(captions, device=labels_Q.device)
    own_Q = cosine_QB[every_Q, labels_Q]

    # Video to text: the mean of its captions against one caption of another video.
    chosen_B = (negatives_QB if hard else _random_like(negatives_QB, generator)).argmax(dim=0)
    negative_B = cosine_QB[chosen_B, torch.arange(videos, device=labels_Q.device)]
    positive_B = torch.zeros_like(negative_B).index_add(0, labels_Q, own_Q) / own_QB.sum(0).clamp(min=1)
    video_to_text = (settings.margin + negative_B - positive_B).clamp(min=0).mean()

    # Text to video: one of the pool's videos.
    if hard:
        pool = min(settings.hard_pool_size, videos - 1)
        candidates_QP = negatives_QB.topk(pool, dim=1).indices
        drawn_Q = torch.randint(0, pool, (captions,), generator=generator, device=labels_Q.device)
        chosen_Q = candidates_QP[every_Q, drawn_Q]
    else:
        chosen_Q = _random_like(negatives_QB, generator).argmax(dim=1)
    text_to_video = (settings.margin + cosine_QB[every_Q, chosen_Q] - own_Q).clamp(min=0).mean()
    return video_to_text + text_to_video


def _random_like(negatives_QB: Tensor, generator: torch.Generator | None) -> Tensor:
    """Random scores that keep excluded pairs at minus infinity, so that argmax draws evenly from the others."""
    random_QB = torch.rand(negatives_QB.shape, generator=generator, device=negatives_QB.device)
    return random_QB.masked_fill(negatives_QB.isneginf(), -torch.inf)


def nce_loss(raw_QB: Tensor, labels_Q: Tensor) -> Tensor:
    """Contrast each caption with all videos and each video with all captions, averaged over each."""
    own_QB = labels_Q[:, None] == torch.arange(raw_QB.shape[1], device=labels_Q.device)
    text_to_video_Q = raw_QB.logsumexp(1) - raw_QB.gather(1, labels_Q[:, None]).squeeze(1)
    video_to_text_B = raw_QB.logsumexp(0) - raw_QB.masked_fill(~own_QB, -torch.inf).logsumexp(0)
    return text_to_video_Q.mean() + video_to_text_B.mean()


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
