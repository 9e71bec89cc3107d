"""The loss of a training step: encode the batch, gather across processes, score, and compute every loss term.

Letters: X branches, Q captions, B videos, E edited captions, D width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from method.data.edits import EditedQueries
from method.model.losses import NCE_WEIGHT, LossSettings, best_own_frames, nce_loss, negative_query_loss, triplet_loss
from method.model.retrieval import RetrievalModel
from method.model.scoring import similarity
from method.training.sharded_batch import Share


def training_losses(
    model: RetrievalModel,
    share: Share,
    settings: LossSettings,
    hard: bool,
    edits: Mapping[str, EditedQueries],
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """All weighted loss terms of a whole batch by name; training minimizes their sum.

    Args:
        share: the batch, or the part of it that this process encodes.
        hard: whether triplet negatives are the hardest ones instead of random ones.
        edits: edited captions of the share, for each branch that has any.
        generator: draws the random negatives; on every process from the same seed.
    """
    batch = share.batch
    assert batch.tokens is not None
    frames, own_queries = model.encode_videos(batch.streams), model.encode_queries(batch.tokens)
    queries = share.queries(own_queries)
    scores = share.scores({name: similarity(frames[name], queries[name]) for name in model.branches})
    labels_Q = share.labels(batch.labels_Q)
    # Both branches at once: on a GPU, launching small operations takes longer than running them.
    cosine_XQB = torch.stack([branch.cosine_QB for branch in scores.values()])
    raw_XQB = torch.stack([branch.raw_QB for branch in scores.values()])
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
            best_QD = best_own_frames(frames[name], scores[name], batch.labels_Q)
            temperature, smoothing = model.temperatures[name], settings.label_smoothing
            loss, count = negative_query_loss(best_QD, own_QD, edited_ED, owner_E, temperature, smoothing)
            terms[f"{name}/negative_queries"] = settings.negative_weight * (share.sum(loss) / share.sum(count))
    return terms
