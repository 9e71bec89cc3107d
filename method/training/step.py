"""A training step: encode the batch, gather across ranks, score, compute the loss terms and update the weights.

Letters: X branches, Q captions, B videos, E edited captions, D width.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from method.config.training_settings import StepSettings
from method.data.batch import VideoBatch
from method.data.edits import EditedQueries, NegativeSource
from method.data.ragged import Ragged
from method.model.branch_spec import fused_weights
from method.model.losses import FUSED, BatchScores, EditScores, LossSettings, best_own_frames, total, weighted_terms
from method.model.retrieval import RetrievalModel
from method.model.scoring import Similarity, fuse
from method.ops.precision import autocast
from method.runtime import hardware
from method.runtime.errors import InputError, summarize
from method.runtime.processes import Processes
from method.training.optimizer import BertAdam
from method.training.relations import with_relations
from method.training.sharded_batch import ShardedBatch, shard_batch
from method.training.timing import Stopwatch

log = logging.getLogger(__name__)


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
) -> dict[str, Tensor]:
    """All weighted loss terms of a whole batch by name; training minimizes their sum.

    Args:
        sharded: the batch, or the shard of it that this rank encodes.
        hard: whether triplet negatives are the hardest ones instead of random ones.
        edits: edited captions of the shard, for each branch that has any.
        generator: draws the random negatives; with the same seed on every rank.
    """
    encoded = encode(model, sharded, edits)
    return weighted_terms(score(model, sharded, encoded, settings, hard, edits, generator), settings)


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
    queries = sharded.gather_queries(encoded.queries)
    scores = sharded.gather_scores(
        {name: model.branch(name).score(keys, queries[name]) for name, keys in encoded.keys.items()}
    )
    rows = _rows(model, sharded, encoded, scores, settings)
    found = BatchScores(
        branches=tuple(rows),
        cosine_XQB=torch.stack([cosine_QB for cosine_QB, _ in rows.values()]),
        raw_XQB=torch.stack([raw_QB for _, raw_QB in rows.values()]),
        labels_Q=sharded.gather_labels(sharded.batch.labels_Q),
        queries=queries,
        shard=sharded.own_captions,
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


class TrainStep:
    """Updates a model on one batch at a time, with the same result on every rank."""

    def __init__(
        self,
        model: RetrievalModel,
        optimizer: BertAdam,
        settings: StepSettings,
        device: torch.device,
        negatives: NegativeSource | None,
        processes: Processes,
    ) -> None:
        self.scaler = torch.amp.GradScaler(device.type, enabled=settings.amp == "fp16")
        self.stopwatch = Stopwatch(device)
        self._model = model
        self._optimizer = optimizer
        self._settings = settings
        self._device = device
        self._negatives = negatives
        self._processes = processes
        self._generator = torch.Generator(device)

    def __call__(self, batch: VideoBatch, epoch: int, step: int) -> dict[str, float]:
        """Update the weights on a batch, or on this rank's shard of one; returns the loss terms of the whole batch.

        InputError when the loss is not finite, before anything is updated.
        """
        with self.stopwatch.part("negatives"):
            edits = self._edits(batch)
        with self.stopwatch.part("forward"):
            terms = self._losses(shard_batch(self._processes, batch.to(self._device), edits), edits, epoch, step)
            loss = total(terms)
            arriving = hardware.AsyncScalars(torch.stack(list(terms.values())))
        with self.stopwatch.part("backward"):
            self._optimizer.zero_grad(set_to_none=True)
            self.scaler.scale(loss).backward()
            self._processes.add_gradients(self._model.parameters())
        # Read after the backward pass is launched, so that a GPU stays busy; nothing has been updated yet.
        values = dict(zip(terms, arriving.read(), strict=True))
        if not all(math.isfinite(value) for value in values.values()):
            self._raise_non_finite(values, batch, f"epoch {epoch} step {step}")
        with self.stopwatch.part("optimizer"):
            if self._settings.grad_clip > 0:
                self.scaler.unscale_(self._optimizer)
                nn.utils.clip_grad_norm_(self._model.parameters(), self._settings.grad_clip, foreach=True)
            self.scaler.step(self._optimizer)
            self.scaler.update()
        return values

    def _losses(
        self, sharded: ShardedBatch, edits: Mapping[str, EditedQueries], epoch: int, step: int
    ) -> dict[str, Tensor]:
        settings = self._settings
        hard = epoch >= settings.hard_from_epoch
        seeds = np.random.SeedSequence([settings.seed, epoch, step])
        self._generator.manual_seed(int(seeds.generate_state(1, np.uint64)[0]))
        with autocast(self._device, settings.amp):
            return training_losses(self._model, sharded, settings.losses, hard, edits, self._generator)

    def _edits(self, batch: VideoBatch) -> dict[str, EditedQueries]:
        """Edited captions for each branch that is trained with them and has any in this batch."""
        if self._negatives is None or not batch.captions:
            return {}
        assert batch.edits is not None, "the loader prepares the edits of a batch"
        by_kind = self._negatives.queries(batch.edits, self._device)
        edits = {branch: by_kind[kind] for branch, kind in self._settings.edit_kinds.items()}
        return {branch: queries for branch, queries in edits.items() if queries is not None}

    def _raise_non_finite(self, values: Mapping[str, float], batch: VideoBatch, where: str) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        ids = [caption.id for captions in self._processes.gather(batch.captions) for caption in captions]
        log.error("%s: captions of the batch: %s", where, " ".join(ids))
        terms = ", ".join(f"{name} {value:g}" for name, value in values.items())
        with self._processes.raise_on_all():
            raise InputError(f"{where}: the loss is not finite ({terms}); captions of the batch: {summarize(ids)}; "
                "nothing was updated")  # fmt: skip
