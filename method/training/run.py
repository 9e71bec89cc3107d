"""A training and the files it writes: every epoch is logged and saved, and a stopped run loses no step."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from method.config.parser import FITTED
from method.data.batch import EpochBatches, VideoBatch
from method.evaluation.fusion_weight import FUSION_WEIGHTS
from method.evaluation.ranking import Evaluation
from method.evaluation.report import drawing
from method.evaluation.split_evaluator import SplitEvaluator, recalls
from method.runtime.errors import PeerFailed, Stopped
from method.runtime.files import write_text
from method.runtime.hardware import memory_mb
from method.runtime.progress import interruptible
from method.runtime.run_folder import BEST, LAST
from method.runtime.signals import StopRequests
from method.training.checkpoint import Loaded, load_model, model_content
from method.training.checkpoint_file import write_checkpoint
from method.training.loop import Training
from method.training.tensorboard import EVERY, Monitor

log = logging.getLogger(__name__)


class TrainingRun:
    """A training that writes its results to the folder `path`; only rank 0 writes.

    Args:
        path: folder of the run.
        training: at its start or restored.
        order: of its batches.
        requests: to stop.
        save_every_steps: within an epoch; 0 saves after epochs only.
        options: of the run as JSON values, stored in its checkpoints.
        data: fingerprints of its splits, stored with its state.
    """

    def __init__(
        self,
        path: Path,
        training: Training,
        order: EpochBatches,
        requests: StopRequests,
        *,
        save_every_steps: int,
        options: Mapping[str, Any],
        data: Mapping[str, str],
    ) -> None:
        self.path = path
        self.save_every_steps = save_every_steps
        self.options = dict(options)
        self.data = dict(data)
        self.training = training
        self.processes = training.processes
        self.order = order
        self.requests = requests
        self.monitor = Monitor(path if self.processes.is_first else None, self.steps_done, self.options)

    @property
    def steps_done(self) -> int:
        """Steps of the training so far, over all epochs."""
        return self.training.progress.epoch * len(self.order) + self.training.progress.step

    def epochs(self, loader: Iterable[VideoBatch], selector: SplitEvaluator) -> None:
        """Train and evaluate until all epochs are done or early stopping applies."""
        training, progress = self.training, self.training.progress
        self.write_history()
        while not training.is_over:
            epoch, started, first = progress.epoch, time.perf_counter(), progress.step
            losses = training.run_epoch(loader, self.order, self.after_step)
            trained = time.perf_counter()
            self.report_speed((progress.step - first) * self.order.batch_size, trained - started)
            # Keep only the metrics: the embeddings would take memory from the next epoch.
            evaluation = selector.evaluate(training.evaluated)
            metrics, several = evaluation.metrics, evaluation.right_ranks
            weight = evaluation.settings.fusion_weight if selector.settings.fusion_weight is None else None
            del evaluation
            if several is not None:
                self.monitor.scalars("multi_gt", several.metrics["fused"], self.steps_done)
            self.monitor.metrics(metrics, self.steps_done)
            fitted = {} if weight is None else {"fusion_weight": weight}
            self.monitor.scalars("fitted", fitted, self.steps_done)
            better = training.finish_epoch(losses, metrics, fitted)
            with self.processes.raise_on_all():
                if better and self.processes.is_first:
                    write_checkpoint(self.path / BEST, self.content(epoch))
            self.write_history()
            self.save()
            log.info(
                "epoch %d: loss %.4f, %s%s%s (training %.1f s, evaluation %.1f s)",
                epoch,
                sum(losses.values()),
                recalls(metrics["fused"]),
                "" if weight is None else f"  fusion weight {weight:.2f}",
                ", the best so far" if better else "",
                trained - started,
                time.perf_counter() - trained,
            )
        log.info("best epoch: %d with SumR %.1f", progress.best_epoch, progress.best_sumr)

    def best(self) -> Loaded:
        """The model of the best epoch."""
        with self.processes.raise_on_all():
            best = load_model(self.path / BEST, self.training.model.architecture) if self.processes.is_first else None
        best = self.processes.broadcast(best)
        assert best is not None
        return best

    def report_speed(self, videos: int, seconds: float) -> None:
        """Log how long each part of an epoch took."""
        step, parts = self.steps_done, self.training.stopwatch.read()
        self.monitor.scalars("seconds_an_epoch", parts, step)
        speed = {"videos_a_second": videos / seconds, "memory_mb": memory_mb(self.training.device)}
        self.monitor.scalars("machine", speed, step)

    def show_result(self, evaluation: Evaluation) -> None:
        """Log figures and metrics of the best epoch."""
        with drawing("the figures in tensorboard/"):
            from method.evaluation.report.figures import figures_for_tensorboard  # imports matplotlib: a second

            self.monitor.figures(figures_for_tensorboard(evaluation), self.steps_done)
        self.monitor.result(evaluation.metrics)

    def content(self, epoch: int) -> dict[str, Any]:
        """The content of a model checkpoint after an epoch."""
        fitted: dict[str, float] = {}
        if self.options.get("fusion_weight") == FITTED:
            evaluations = self.training.progress.history or [{}]
            fitted = evaluations[-1].get("fitted", {"fusion_weight": FUSION_WEIGHTS[0]})
        return model_content(self.training.evaluated, epoch, self.options, fitted)

    def save(self) -> None:
        """Write last.ckpt, from which the run can be resumed; all ranks wait until it is written."""
        state = self.training.state()
        with self.processes.raise_on_all():
            if self.processes.is_first:
                content = self.content(self.training.progress.epoch)
                write_checkpoint(self.path / LAST, {**content, **state, "data": self.data})

    def write_history(self) -> None:
        """Write history.jsonl, one line per finished epoch."""
        if self.processes.is_first:
            lines = (json.dumps(row) + "\n" for row in self.training.progress.history)
            write_text(self.path / "history.jsonl", "".join(lines))

    def after_step(self, terms: dict[str, float]) -> None:
        """Log a step, and save every `--save_every_steps` steps."""
        training, step = self.training, self.steps_done
        self.monitor.scalars("loss", {**terms, "all": sum(terms.values())}, step)
        if step % EVERY == 0:
            values = {"learning_rate": training.optimizer.learning_rate, "norm": training.optimizer.gradient_norm}
            self.monitor.scalars("gradient", values, step)
            scales = {name: weight.item() for name, weight in training.model.named_parameters() if weight.dim() == 0}
            self.monitor.scalars("temperature", scales, step)
        if self.save_every_steps and training.progress.step % self.save_every_steps == 0:
            self.save()

    def stop_if_requested(self) -> None:
        """Raise Stopped if a signal has requested it."""
        if self.requests.received is not None:
            raise Stopped(self.requests.received, "stop requested")

    @contextlib.contextmanager
    def saved_when_stopped(self) -> Iterator[None]:
        """In this block progress bars poll for a stop request, which saves the run before the program exits."""
        try:
            with interruptible(self.stop_if_requested):
                yield
        except Stopped as stop:
            self.save()
            progress = self.training.progress
            log.info("epoch %d step %d: stopped, saved %s", progress.epoch, progress.step, LAST)
            if not self.processes.is_first:
                raise PeerFailed(128 + stop.signal) from None
            count = self.processes.count
            program = "with: python" if count == 1 else f"with {count} processes: torchrun ..."
            command = f"{program} method/train.py --resume {self.path}"
            raise Stopped(stop.signal, f"stopped and saved; continue {command}") from None
