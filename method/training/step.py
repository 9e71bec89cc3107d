"""A training step: compute the loss terms of a batch and update the weights."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from method.config.training_settings import StepSettings
from method.data.batch import VideoBatch
from method.data.edits import EditedQueries, NegativeSource
from method.model.losses import total
from method.model.retrieval import RetrievalModel
from method.ops.precision import autocast
from method.runtime import hardware
from method.runtime.errors import InputError, summarize
from method.runtime.processes import Processes
from method.training.batch_losses import training_losses
from method.training.optimizer import BertAdam
from method.training.sharded_batch import ShardedBatch, shard_batch
from method.training.timing import Stopwatch

log = logging.getLogger(__name__)


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
        average: RetrievalModel | None = None,
    ) -> None:
        self.scaler = torch.amp.GradScaler(device.type, enabled=settings.amp == "fp16")
        self.stopwatch = Stopwatch(device)
        self._model = model
        self._optimizer = optimizer
        self._settings = settings
        self._device = device
        self._negatives = negatives
        self._processes = processes
        self._average = average
        self._generator = torch.Generator(device)

    def __call__(self, batch: VideoBatch, epoch: int, step: int) -> dict[str, float]:
        """Update the weights on a batch, or on this rank's shard of one; returns the loss terms of the whole batch.

        InputError when the loss is not finite, before anything is updated.
        """
        with self.stopwatch.part("negatives"):
            edits = self._edits(batch) if epoch >= self._settings.edits_from_epoch else {}
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
            return training_losses(self._model, sharded, settings.losses, hard, edits, self._generator, self._average)

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
