"""The losses of a batch: encode it, gather across ranks, score, and compute the loss terms.

Letters: X branches, Q captions, B videos, E edited captions, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from method.data.edits import EditedQueries
from method.data.ragged import Ragged
from method.model.branch_spec import fused_weights
from method.model.losses import FUSED, BatchScores, EditScores, LossSettings, best_own_frames, weighted_terms
from method.model.retrieval import RetrievalModel
from method.model.scoring import Similarity, fuse
from method.training.relations import with_relations
from method.training.sharded_batch import ShardedBatch


@dataclass(frozen=True)
class Encoded:
    """What the model makes of this rank's videos and captions: for each branch keys, queries and edits."""

    keys: Mapping[str, Ragged]
    queries: Mapping[str, Tensor]
    edits: Mapping[str, Tensor]


def training_losses(
    model: RetrievalModel,
    sharded: ShardedBatch,
    settings: LossSettings,
    hard: bool,
    edits: Mapping[str, EditedQueries],
    generator: torch.Generator | None = None,
    average: RetrievalModel | None = None,
) -> dict[str, Tensor]:
    """All weighted loss terms of a whole batch by name; training minimizes their sum.

    Args:
        sharded: the batch, or the shard of it that this rank encodes.
        hard: whether triplet negatives are the hardest ones instead of random ones.
        edits: edited captions of the shard, for each branch that has any.
        generator: draws the random negatives; with the same seed on every rank.
        average: the model with averaged weights, where it is the teacher of soft targets.
    """
    encoded = encode(model, sharded, edits)
    scores = score(model, sharded, encoded, settings, hard, edits, generator)
    if settings.soft_targets and settings.soft_teacher == "average":
        assert average is not None, "this teacher is the running average of the weights"
        scores = replace(scores, teacher_XQB=teacher_scores(average, sharded, settings))
    return weighted_terms(scores, settings)


@torch.no_grad()
def teacher_scores(average: RetrievalModel, sharded: ShardedBatch, settings: LossSettings) -> Tensor:
    """The cosines that a teacher gives the whole batch, (X, Q, B), in the rows of the model that it teaches.

    The teacher is the average of the trained weights (Tarvainen and Valpola 2017), without dropout and augmentation;
    its scores are targets as in momentum distillation (Li et al. 2021: ALBEF), but of this batch alone, without a queue
    of earlier ones, and with the same weight from the first step on.
    """
    average.eval()
    encoded = encode(average, sharded, {})
    _, scores = _gathered(average, sharded, encoded)
    return torch.stack([cosine_QB for cosine_QB, _ in _rows(average, sharded, encoded, scores, settings).values()])


def encode(model: RetrievalModel, sharded: ShardedBatch, edits: Mapping[str, EditedQueries]) -> Encoded:
    """The forward pass of the model over this rank's shard of a batch."""
    assert sharded.batch.tokens is not None
    keys, queries = model.encode_videos(sharded.batch.streams), model.encode_queries(sharded.batch.tokens)
    edited = {name: model.branch(name).encode_queries(edits[name].queries) for name in model.branches if name in edits}
    return Encoded(keys, queries, edited)


def score(
    model: RetrievalModel,
    sharded: ShardedBatch,
    encoded: Encoded,
    settings: LossSettings,
    hard: bool,
    edits: Mapping[str, EditedQueries],
    generator: torch.Generator | None,
) -> BatchScores:
    """Gather the queries and scores of all ranks: what the losses are functions of."""
    queries, scores = _gathered(model, sharded, encoded)
    rows = _rows(model, sharded, encoded, scores, settings)
    found = BatchScores(
        branches=tuple(rows),
        cosine_XQB=torch.stack([cosine_QB for cosine_QB, _ in rows.values()]),
        raw_XQB=torch.stack([raw_QB for _, raw_QB in rows.values()]),
        labels_Q=sharded.gather_labels(sharded.batch.labels_Q),
        queries=queries,
        shard=sharded.own_captions,
        first_video=sharded.first_video,
        hard=hard,
        keys=encoded.keys,
        edits={
            name: _edit_scores(model, sharded, encoded, scores, edits, name)
            for name in scores
            if name in sharded.edited
        },
        generator=generator,
        sum=sharded.sum,
    )
    return with_relations(found, sharded, settings)


def _gathered(
    model: RetrievalModel, sharded: ShardedBatch, encoded: Encoded
) -> tuple[Mapping[str, Tensor], Mapping[str, Similarity]]:
    """The queries of all ranks and the scores of all of them and all videos, for each branch."""
    queries = sharded.gather_queries(encoded.queries)
    scores = {name: model.branch(name).score(keys, queries[name]) for name, keys in encoded.keys.items()}
    return queries, sharded.gather_scores(scores)


def _rows(
    model: RetrievalModel,
    sharded: ShardedBatch,
    encoded: Encoded,
    scores: Mapping[str, Similarity],
    settings: LossSettings,
) -> dict[str, tuple[Tensor, Tensor]]:
    """The cosines and raw scores, (Q, B) each, that have losses: of the branches, of their fused score, or of both."""
    rows = {name: (branch.cosine_QB, branch.raw_QB) for name, branch in scores.items()}
    if settings.fused == "off":
        return rows
    weights: Mapping[str, float] | Mapping[str, Tensor]
    weights = fused_weights(model.architecture.branches, settings.fusion_weight)
    if model.query_weights is not None:
        own_QX = model.query_weights(encoded.queries, weights)  # of this rank's captions, whose gradients are its own
        weights = model.query_weights.by_branch(sharded.gather_captions(own_QX))
    cosine_QB, raw_QB = (
        fuse(dict(zip(rows, parts, strict=True)), weights) for parts in zip(*rows.values(), strict=True)
    )
    return {**(rows if settings.fused == "beside" else {}), FUSED: (cosine_QB, raw_QB)}


def _edit_scores(
    model: RetrievalModel,
    sharded: ShardedBatch,
    encoded: Encoded,
    scores: Mapping[str, Similarity],
    edits: Mapping[str, EditedQueries],
    name: str,
) -> EditScores:
    """What the hard negative query loss of one branch compares; without edits when only other ranks have some."""
    labels_Q = sharded.batch.labels_Q
    own_QD = encoded.queries[name][: len(labels_Q)]
    if name in edits:
        edited_ED, owner_E = encoded.edits[name], edits[name].owner_E
    else:
        edited_ED, owner_E = own_QD[:0], labels_Q[:0]
    best_QD = best_own_frames(encoded.keys[name], scores[name], labels_Q)
    return EditScores(best_QD, own_QD, edited_ED, owner_E, model.temperatures[name])
