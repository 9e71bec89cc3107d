"""The training loop: steps, epochs, early stop, and a state that can be put down and taken up anywhere.

Epochs and steps count from 0.
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from method.data.batch import EpochBatches, VideoBatch
from method.data.edits import EditedQueries, NegativeSource
from method.model.losses import LossSettings, total
from method.model.retrieval import RetrievalModel
from method.ops.precision import autocast
from method.runtime import hardware
from method.runtime.errors import InputError, summarize
from method.runtime.processes import SINGLE_PROCESS, Processes
from method.runtime.progress import progress_bar
from method.training.optimizer import Schedule, make_optimizer
from method.training.sharded_batch import Share, share_of
from method.training.step import training_losses
from method.training.timing import Stopwatch

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoopSettings:
    """What the loop takes from the options.

    seed: of the random negatives, with the epoch and the step, so that all processes draw the same.
    """

    epochs: int
    early_stop: int
    hard_from_epoch: int
    grad_clip: float
    amp: str
    losses: LossSettings
    seed: int


@dataclass
class Progress:
    """Where a training stands.

    epoch, step: the epoch under way and the steps done in it. terms: sums of the loss terms over these steps.
    best_sumr, best_epoch, since_best: the best evaluation so far and how many epochs came after it.
    history: a row for every epoch that is done.
    """

    epoch: int = 0
    step: int = 0
    terms: dict[str, float] = field(default_factory=dict)
    best_sumr: float = -math.inf
    best_epoch: int = -1
    since_best: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)


class Training:
    """A model on its way: everything that changes from step to step, the same on each of its processes."""

    def __init__(
        self,
        model: RetrievalModel,
        settings: LoopSettings,
        schedule: Schedule,
        weight_decay: float,
        device: torch.device,
        negatives: NegativeSource | None,
        processes: Processes = SINGLE_PROCESS,
    ) -> None:
        self.model = model.to(device)
        self.settings = settings
        self.device = device
        self.negatives = negatives
        self.processes = processes
        self.generator = torch.Generator(device)
        self.optimizer = make_optimizer(model, schedule, weight_decay)
        self.scaler = torch.amp.GradScaler(device.type, enabled=settings.amp == "fp16")
        self.progress = Progress()
        self.stopwatch = Stopwatch(device)

    def run_epoch(
        self, loader: Iterable[VideoBatch], order: EpochBatches, after_step: Callable[[dict[str, float]], None]
    ) -> dict[str, float]:
        """Do the steps of the epoch under way that are still to do, each followed by `after_step` with its loss terms.

        Returns the mean of each loss term over the epoch.
        """
        progress = self.progress
        order.epoch, order.start = progress.epoch, progress.step
        self.model.train()
        settings = {"total": len(order), "initial": progress.step, "delay": 0}
        bar = progress_bar(loader, f"epoch {progress.epoch}", "step", **settings)
        asked = time.perf_counter()
        for batch in self.processes.in_lockstep(bar):
            self.stopwatch.add("data", time.perf_counter() - asked)
            if not order.shard(progress.step):
                batch = replace(batch, video_ids=(), captions=(), labels_Q=batch.labels_Q[:0], edits=None)
            terms = self.step(batch)
            progress.step += 1
            for name, value in terms.items():
                progress.terms[name] = progress.terms.get(name, 0.0) + value
            bar.set_postfix(loss=f"{sum(terms.values()):.4f}", refresh=False)
            after_step(terms)
            asked = time.perf_counter()
        return {name: value / progress.step for name, value in progress.terms.items()}

    def step(self, batch: VideoBatch) -> dict[str, float]:
        """One update with a batch, or with this process's share of one; returns the loss terms of the whole batch.

        InputError when the loss is not finite, before anything is updated.
        """
        with self.stopwatch.part("negatives"):
            edits = self._edits(batch)
        with self.stopwatch.part("forward"):
            terms = self._losses(share_of(self.processes, batch.to(self.device), edits), edits)
            loss = total(terms)
            arriving = hardware.Arriving(torch.stack(list(terms.values())))
        with self.stopwatch.part("backward"):
            self.optimizer.zero_grad(set_to_none=True)
            self.scaler.scale(loss).backward()
            self.processes.add_gradients(self.model.parameters())
        # Read only now: a GPU is busy with the backward pass meanwhile, and nothing has been updated yet.
        values = dict(zip(terms, arriving.read(), strict=True))
        if not all(math.isfinite(value) for value in values.values()):
            self._refuse(values, batch)
        with self.stopwatch.part("optimizer"):
            if self.settings.grad_clip > 0:
                self.scaler.unscale_(self.optimizer)
                nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.grad_clip, foreach=True)
            self.scaler.step(self.optimizer)
            self.scaler.update()
        return values

    def _losses(self, share: Share, edits: Mapping[str, EditedQueries]) -> dict[str, Tensor]:
        settings, progress = self.settings, self.progress
        hard = progress.epoch >= settings.hard_from_epoch
        seeds = np.random.SeedSequence([settings.seed, progress.epoch, progress.step])
        self.generator.manual_seed(int(seeds.generate_state(1, np.uint64)[0]))
        with autocast(self.device, settings.amp):
            return training_losses(self.model, share, settings.losses, hard, edits, self.generator)

    def _edits(self, batch: VideoBatch) -> dict[str, EditedQueries]:
        """Edited captions for each branch that is trained with them and has any in this batch."""
        if self.negatives is None or not batch.captions:
            return {}
        assert batch.edits is not None, "a loader of this training prepares the edits of its captions"
        of_kind = self.negatives.queries(batch.edits, self.device)
        edits = {}
        for branch in self.model.architecture.temperatures:
            # With both kinds each branch gets its own: verbs the action branch, nouns the object branch.
            made = of_kind[branch] if len(of_kind) == 2 else next(iter(of_kind.values()), None)  # type: ignore[index]
            if made is not None:
                edits[branch] = made
        return edits

    def _refuse(self, values: Mapping[str, float], batch: VideoBatch) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        where = f"epoch {self.progress.epoch} step {self.progress.step}"
        ids = [caption.id for part in self.processes.gather(batch.captions) for caption in part]
        log.error("%s: captions of the batch: %s", where, " ".join(ids))
        terms = ", ".join(f"{name} {value:g}" for name, value in values.items())
        with self.processes.raise_on_all():
            raise InputError(f"{where}: the loss is not finite ({terms}); captions of the batch: {summarize(ids)}; "
                "nothing was updated")  # fmt: skip

    def finish_epoch(self, losses: Mapping[str, float], metrics: Mapping[str, Mapping[str, float]]) -> bool:
        """Record an evaluated epoch and go on to the next; returns whether it is the best so far (ties: the later)."""
        progress = self.progress
        sumr = metrics["fused"]["sumr"]
        better = sumr >= progress.best_sumr
        if better:
            progress.best_sumr, progress.best_epoch, progress.since_best = sumr, progress.epoch, 0
        else:
            progress.since_best += 1
        progress.history.append({"epoch": progress.epoch, "losses": dict(losses), "metrics": dict(metrics)})
        progress.epoch, progress.step, progress.terms = progress.epoch + 1, 0, {}
        return better

    @property
    def is_over(self) -> bool:
        """Whether all epochs are done, or too many came without a better one."""
        patience = self.settings.early_stop
        stopped = patience >= 0 and self.progress.since_best > patience
        return stopped or self.progress.epoch >= self.settings.epochs

    def state(self) -> dict[str, Any]:
        """Everything that going on needs, beside what every checkpoint holds; made by all processes together."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "progress": asdict(self.progress),
            "random": dict(enumerate(self.processes.gather(random_states()))),
        }

    def restore(self, content: Mapping[str, Any]) -> None:
        """Take up what `state` gave, and the weights."""
        self.model.load_state_dict(content["model"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.scaler.load_state_dict(content["scaler"])
        self.progress = Progress(**content["progress"])
        restore_random_states(content["random"][self.processes.rank])


def random_states() -> dict[str, Any]:
    """The states of all random number generators, as plain data and tensors."""
    numpy_state: Any = np.random.get_state(legacy=False)  # noqa: NPY002 (libraries may use it)
    return {
        "python": random.getstate(),
        "numpy": {**numpy_state, "state": {**numpy_state["state"], "key": numpy_state["state"]["key"].tolist()}},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all(),
    }


def restore_random_states(states: Mapping[str, Any]) -> None:
    """Put all random number generators back."""
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    numpy_state = states["numpy"]
    key = np.array(numpy_state["state"]["key"], dtype=np.uint32)
    np.random.set_state({**numpy_state, "state": {**numpy_state["state"], "key": key}})  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])


def seed_everything(seed: int, rank: int = 0) -> None:
    """Seed every random number generator, those of each process with other numbers."""
    if rank:
        seed = int(np.random.SeedSequence([seed, rank]).generate_state(1, np.uint64)[0])
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.manual_seed(seed)
