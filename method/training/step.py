"""A training step's loss: encode the batch, gather across processes and score, then compute every loss term.

Letters: X branches, Q captions, B videos, E edited captions, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from method.data.edits import EditedQueries
from method.data.ragged import Ragged
from method.model.losses import BatchScores, EditScores, LossSettings, best_own_frames, weighted_terms
from method.model.retrieval import RetrievalModel
from method.model.scoring import Similarity
from method.training.sharded_batch import Share


@dataclass(frozen=True)
class Encoded:
    """What the model makes of this process's videos and captions: for each branch keys, queries and edits."""

    keys: Mapping[str, Ragged]
    queries: Mapping[str, Tensor]
    edits: Mapping[str, Tensor]


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
    encoded = encode(model, share, edits)
    return weighted_terms(score(model, share, encoded, hard, edits, generator), settings)


def encode(model: RetrievalModel, share: Share, edits: Mapping[str, EditedQueries]) -> Encoded:
    """The forward pass of the model over this process's part of a batch."""
    assert share.batch.tokens is not None
    keys, queries = model.encode_videos(share.batch.streams), model.encode_queries(share.batch.tokens)
    edited = {name: model.branch(name).encode_queries(edits[name].queries) for name in model.branches if name in edits}
    return Encoded(keys, queries, edited)


def score(
    model: RetrievalModel,
    share: Share,
    encoded: Encoded,
    hard: bool,
    edits: Mapping[str, EditedQueries],
    generator: torch.Generator | None,
) -> BatchScores:
    """Gather the queries and scores of all processes: what the losses are functions of."""
    queries = share.queries(encoded.queries)
    scores = share.scores({name: model.branch(name).score(keys, queries[name]) for name, keys in encoded.keys.items()})
    return BatchScores(
        branches=tuple(scores),
        cosine_XQB=torch.stack([branch.cosine_QB for branch in scores.values()]),
        raw_XQB=torch.stack([branch.raw_QB for branch in scores.values()]),
        labels_Q=share.labels(share.batch.labels_Q),
        queries=queries,
        hard=hard,
        keys=encoded.keys,
        edits={name: _edits(model, share, encoded, scores, edits, name) for name in scores if name in share.edited},
        generator=generator,
        sum=share.sum,
    )


def _edits(
    model: RetrievalModel,
    share: Share,
    encoded: Encoded,
    scores: Mapping[str, Similarity],
    edits: Mapping[str, EditedQueries],
    name: str,
) -> EditScores:
    """What the hard negative query loss of one branch compares; without edits when only other processes have some."""
    labels_Q = share.batch.labels_Q
    own_QD = encoded.queries[name][: len(labels_Q)]
    if name in edits:
        edited_ED, owner_E = encoded.edits[name], edits[name].owner_E
    else:
        edited_ED, owner_E = own_QD[:0], labels_Q[:0]
    best_QD = best_own_frames(encoded.keys[name], scores[name], labels_Q)
    return EditScores(best_QD, own_QD, edited_ED, owner_E, model.temperatures[name])
