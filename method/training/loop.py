"""The training loop: epochs, early stopping, and a training state that can be saved and restored at any step.

Epochs and steps count from 0.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch

from method.config.training_settings import LoopSettings
from method.data.batch import EpochBatches, VideoBatch
from method.data.edits import NegativeSource
from method.model.retrieval import RetrievalModel
from method.runtime.processes import SINGLE_PROCESS, Processes
from method.runtime.progress import progress_bar
from method.training.average import WeightAverage
from method.training.optimizer import Schedule, make_optimizer
from method.training.step import TrainStep

TRAINED = "trained"  # in last.ckpt: the weights of the optimizer where "model" has their average


@dataclass
class Progress:
    """How far a training is.

    epoch, step: the current epoch and the steps done in it. terms: sums of the loss terms over these steps.
    best_sumr, best_epoch, since_best: the best evaluation so far and the number of epochs since.
    history: a row for every finished epoch.
    """

    epoch: int = 0
    step: int = 0
    terms: dict[str, float] = field(default_factory=dict)
    best_sumr: float = -math.inf
    best_epoch: int = -1
    since_best: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)


class Training:
    """Model, optimizer and progress of a training: the state that a checkpoint saves, the same on every rank.

    average: of the model's weights, None without `--ema`.
    """

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
        self.processes = processes
        self.optimizer = make_optimizer(model, schedule, weight_decay)
        self.progress = Progress()
        self.average = WeightAverage(self.model, settings.ema) if settings.ema else None
        if self.average is not None:  # not called for a step that the scaler of --amp fp16 skips
            self.optimizer.register_step_post_hook(self._average_weights)
        averaged = None if self.average is None else self.average.model
        self._update = TrainStep(self.model, self.optimizer, settings, device, negatives, processes, averaged)
        self.stopwatch = self._update.stopwatch

    def run_epoch(
        self, loader: Iterable[VideoBatch], order: EpochBatches, after_step: Callable[[dict[str, float]], None]
    ) -> dict[str, float]:
        """Run the remaining steps of the current epoch and call `after_step` with the loss terms of each.

        Returns the mean of each loss term over the epoch.
        """
        progress = self.progress
        order.epoch, order.start = progress.epoch, progress.step
        self.model.train()
        settings = {"total": len(order), "initial": progress.step, "delay": 0}
        bar = progress_bar(loader, f"epoch {progress.epoch}", "step", **settings)
        requested = time.perf_counter()
        for batch in self.processes.in_lockstep(bar):
            self.stopwatch.add("data", time.perf_counter() - requested)
            if not order.shard(progress.step):
                batch = replace(batch, video_ids=(), captions=(), labels_Q=batch.labels_Q[:0], edits=None)
            terms = self.step(batch)
            progress.step += 1
            for name, value in terms.items():
                progress.terms[name] = progress.terms.get(name, 0.0) + value
            bar.set_postfix(loss=f"{sum(terms.values()):.4f}", refresh=False)
            after_step(terms)
            requested = time.perf_counter()
        return {name: value / progress.step for name, value in progress.terms.items()}

    def step(self, batch: VideoBatch) -> dict[str, float]:
        """Update the weights on a batch, or on this rank's shard of one; returns the loss terms of the whole batch."""
        return self._update(batch, self.progress.epoch, self.progress.step)

    def _average_weights(self, *_: Any) -> None:
        assert self.average is not None
        self.average.update(self.optimizer.param_groups[0]["step"])

    @property
    def evaluated(self) -> RetrievalModel:
        """The model that is evaluated and saved: with the averaged weights if there is an average."""
        return self.model if self.average is None else self.average.model

    def finish_epoch(
        self,
        losses: Mapping[str, float],
        metrics: Mapping[str, Mapping[str, float]],
        fitted: Mapping[str, float] | None = None,
    ) -> bool:
        """Record an evaluated epoch and move to the next; returns whether it is the best so far (ties count).

        fitted: values of options that this evaluation has fitted.
        """
        progress = self.progress
        sumr = metrics["fused"]["sumr"]
        better = sumr >= progress.best_sumr
        if better:
            progress.best_sumr, progress.best_epoch, progress.since_best = sumr, progress.epoch, 0
        else:
            progress.since_best += 1
        row = {"epoch": progress.epoch, "losses": dict(losses), "metrics": dict(metrics)}
        progress.history.append({**row, "fitted": dict(fitted)} if fitted else row)
        progress.epoch, progress.step, progress.terms = progress.epoch + 1, 0, {}
        return better

    @property
    def is_over(self) -> bool:
        """Whether all epochs are done or early stopping applies."""
        patience = self.settings.early_stop
        stopped = patience >= 0 and self.progress.since_best > patience
        return stopped or self.progress.epoch >= self.settings.epochs

    def state(self) -> dict[str, Any]:
        """What a resumed training needs besides `evaluated`. A collective: all ranks call it together."""
        return {
            **({} if self.average is None else {TRAINED: self.model.state_dict()}),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self._update.scaler.state_dict(),
            "progress": asdict(self.progress),
            "random": dict(enumerate(self.processes.gather(random_states()))),
        }

    def restore(self, content: Mapping[str, Any]) -> None:
        """Load the weights and what `state` returned."""
        self.evaluated.load_state_dict(content["model"])
        if self.average is not None:
            self.model.load_state_dict(content[TRAINED])
        self.optimizer.load_state_dict(content["optimizer"])
        self._update.scaler.load_state_dict(content["scaler"])
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
    """Restore what `random_states` returned."""
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    numpy_state = states["numpy"]
    key = np.array(numpy_state["state"]["key"], dtype=np.uint32)
    np.random.set_state({**numpy_state, "state": {**numpy_state["state"], "key": key}})  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])


def seed_everything(seed: int, rank: int = 0) -> None:
    """Seed every random number generator, differently on each rank."""
    if rank:
        seed = int(np.random.SeedSequence([seed, rank]).generate_state(1, np.uint64)[0])
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.manual_seed(seed)
