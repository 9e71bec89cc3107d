r"""Train A3PRVR, or with --only_eval evaluate a checkpoint.

    python method/train.py --dataset_name charades --phrase_action_branch --flow_feat --cross_branch_fusion \
        --deformable_attn
    python method/train.py --resume results/charades/a3prvr/2026-01-31_12-00-00
    python method/train.py --help

The launchers do_*.sh pass the published flags. A run writes results/<dataset>/<exp_id>/<description or start time>/.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from easydict import EasyDict

from method.config import choose_device, make_architecture, plain, read_options
from method.data.batch import EpochBatches, Loader
from method.data.captions import Caption
from method.data.check import Split, check_split, describe, warn_of_shared_videos
from method.data.dataset import FeatureReader, TrainingVideos, split_holdout
from method.data.edited_queries import NegativeSource
from method.errors import InputError, Stopped, run_command
from method.evaluate import SplitEvaluator, evaluate_checkpoint, known_moments, open_features, recalls, report
from method.evaluation.evaluate import Evaluation
from method.evaluation.report.subject import Subject
from method.files import write_json, write_text
from method.model.retrieval import RetrievalModel
from method.progress import be_quiet
from method.run_folder import BEST, LAST, OPTIONS, RunFolder, log_to_terminal
from method.training.checkpoint import load_model, model_content, write_checkpoint
from method.training.loop import LoopSettings, Training, seed_everything
from method.training.losses import LossSettings
from method.training.monitor import EVERY, Monitor, memory_mb
from method.training.negative_queries import open_negatives
from method.training.optimizer import Schedule
from method.training.resume import fingerprints, kept_options, open_run, take_up
from method.training.signals import StopRequests

log = logging.getLogger(__name__)

DEBUG_EPOCHS = 2
DEBUG_STEPS = 2


def main(arguments: Sequence[str] | None = None) -> Path:
    """Do what the command line says; returns the folder of the run."""
    log_to_terminal()
    options = read_options(arguments, kept=kept_options)
    be_quiet(options.quiet)
    if options.eval_ckpt and not options.only_eval:
        raise InputError("--eval_ckpt is for --only_eval; a run is gone on with by --resume")
    return evaluate_checkpoint(options) if options.only_eval else train(options)


def train(options: EasyDict) -> Path:
    """Train, select the best epoch, evaluate it on the evaluated split and write its metrics."""
    device = choose_device(options)
    if options.debug:
        options.n_epoch = DEBUG_EPOCHS
    seed_everything(options.seed)
    model = RetrievalModel(make_architecture(options))
    reader = open_features(options, model.architecture)
    splits = load_splits(options, reader)
    moments = known_moments(options, splits.reported)
    ids = [caption.id for caption in (*splits.training_file, *splits.reported.captions)]
    negatives = open_negatives(options, splits.training_file, ids, device)
    data = fingerprints([splits.training, splits.selecting, splits.reported])
    folder, state = open_run(options)
    with folder, StopRequests() as requests:
        order = EpochBatches(len(splits.training.video_ids), options.bsz, options.seed)
        pinned = options.pin_memory and device.type == "cuda"
        loader = Loader(TrainingVideos(reader, splits.training.captions), order, options.num_workers, pinned)
        training = make_training(options, model, len(order), device, negatives)
        if state is not None:
            take_up(training, state, folder.path, data)
        write_json(folder.path / OPTIONS, plain(options))
        selector = SplitEvaluator(options, reader, splits.selecting, device)
        run = _Run(options, folder, training, order, requests, data)
        with contextlib.closing(run.monitor):
            run.write_history()
            run.epochs(loader, selector)
            best = load_model(folder.path / BEST, model.architecture)
            evaluator = selector
            if splits.reported is not splits.selecting:
                evaluator = SplitEvaluator(options, reader, splits.reported, device)
            evaluation = evaluator.evaluate(best.model.to(device), options.save_scores, run.watch)
            subject = Subject(best.model, evaluation, splits.reported, options, best.epoch, folder.path / BEST, moments)
            report(folder, subject, best.sha256)
            run.show_result(evaluation)
    return folder.path


@dataclass(frozen=True)
class Splits:
    """The videos to train on, those that select the epoch, those to report, and all captions of the training file."""

    training: Split
    selecting: Split
    reported: Split
    training_file: list[Caption]


def load_splits(options: Mapping[str, Any], reader: FeatureReader) -> Splits:
    """Check the files of both splits and divide their videos as the options say."""
    whole = check_split("training split", options["caption_train_txt"], reader)
    reported = check_split("evaluated split", options["caption_test_txt"], reader)
    warn_of_shared_videos(whole, reported)
    training, selecting = whole, reported
    if options["debug"]:
        few = set(whole.video_ids[: DEBUG_STEPS * options["bsz"]])
        training = replace(whole, captions=[caption for caption in whole.captions if caption.video_id in few])
    if options["holdout_fraction"]:
        kept, held_out = split_holdout(training.captions, options["holdout_fraction"], options["seed"])
        training = replace(whole, captions=kept)
        selecting = replace(whole, name="held-out training videos", captions=held_out)
    for split in {split.name: split for split in (training, selecting, reported)}.values():
        log.info(describe(split))
    log.info("the epoch is selected on the %s", selecting.name)
    return Splits(training, selecting, reported, whole.captions)


def make_training(
    options: Mapping[str, Any],
    model: RetrievalModel,
    steps: int,
    device: torch.device,
    negatives: NegativeSource | None = None,
) -> Training:
    """Everything that changes from step to step, at the start; `steps` is those of one epoch."""
    losses = LossSettings(
        options["margin"],
        options["hard_pool_size"],
        options["neg_query_loss_weight"],
        options["neg_loss_label_smoothing"],
    )
    settings = LoopSettings(
        options["n_epoch"],
        options["max_es_cnt"],
        options["hard_negative_start_epoch"],
        options["grad_clip"],
        options["amp"],
        losses,
    )
    schedule = Schedule(options["lr"], options["lr_warmup_proportion"], steps * options["n_epoch"])
    return Training(model, settings, schedule, options["wd"], device, negatives)


class _Run:
    """The epochs of one training, each recorded and saved before the next begins."""

    def __init__(
        self,
        options: EasyDict,
        folder: RunFolder,
        training: Training,
        order: EpochBatches,
        requests: StopRequests,
        data: Mapping[str, str],
    ) -> None:
        self.options = options
        self.data = dict(data)
        self.folder = folder
        self.training = training
        self.order = order
        self.requests = requests
        self.monitor = Monitor(folder.path, self.steps_done, plain(options))

    @property
    def steps_done(self) -> int:
        """Steps since the beginning of the training."""
        return self.training.progress.epoch * len(self.order) + self.training.progress.step

    def epochs(self, loader: Loader, selector: SplitEvaluator) -> None:
        """Train and evaluate until all epochs are done or none gets better."""
        training, progress = self.training, self.training.progress
        while not training.is_over:
            epoch, started, first = progress.epoch, time.perf_counter(), progress.step
            losses = training.run_epoch(loader, self.order, self.after_step)
            trained = time.perf_counter()
            self.report_speed((progress.step - first) * self.options.bsz, trained - started)
            evaluation = selector.evaluate(training.model, watch=self.watch)
            self.monitor.metrics(evaluation.metrics, self.steps_done)
            if training.finish_epoch(losses, evaluation.metrics):
                write_checkpoint(self.folder.path / BEST, self.content(epoch))
            self.write_history()
            self.save()
            log.info(
                "epoch %d: loss %.4f, %s%s (training %.1f s, evaluation %.1f s)",
                epoch,
                sum(losses.values()),
                recalls(evaluation.metrics["fused"]),
                ", the best so far" if progress.best_epoch == epoch else "",
                trained - started,
                time.perf_counter() - trained,
            )
        log.info("best epoch: %d with SumR %.1f", progress.best_epoch, progress.best_sumr)

    def report_speed(self, videos: int, seconds: float) -> None:
        """Tell TensorBoard where the time of an epoch went."""
        step, parts = self.steps_done, self.training.stopwatch.read()
        self.monitor.scalars("seconds_an_epoch", parts, step)
        speed = {"videos_a_second": videos / seconds, "memory_mb": memory_mb(self.training.device)}
        self.monitor.scalars("machine", speed, step)

    def show_result(self, evaluation: Evaluation) -> None:
        """Show TensorBoard the best epoch: pictures, and its metrics beside the options."""
        from method.evaluation.report.figures import figures_for_tensorboard  # loads the drawing library: a second

        self.monitor.figures(figures_for_tensorboard(evaluation), self.steps_done)
        self.monitor.result(evaluation.metrics)

    def content(self, epoch: int) -> dict[str, Any]:
        """What a checkpoint of the model holds after an epoch."""
        return model_content(self.training.model, epoch, plain(self.options))

    def save(self) -> None:
        """Write last.ckpt, from which the run can go on."""
        content = self.content(self.training.progress.epoch)
        self.training.save(self.folder.path / LAST, {**content, "data": self.data})

    def write_history(self) -> None:
        """Write history.jsonl, a line for every epoch that is done."""
        lines = (json.dumps(row) + "\n" for row in self.training.progress.history)
        write_text(self.folder.path / "history.jsonl", "".join(lines))

    def after_step(self, terms: dict[str, float]) -> None:
        """Record the step, save when it is time to, and stop when asked to."""
        training, step = self.training, self.steps_done
        self.monitor.scalars("loss", {**terms, "all": sum(terms.values())}, step)
        if step % EVERY == 0:
            values = {"learning_rate": training.optimizer.learning_rate, "norm": training.optimizer.gradient_norm}
            self.monitor.scalars("gradient", values, step)
            scales = {name: weight.item() for name, weight in training.model.named_parameters() if weight.dim() == 0}
            self.monitor.scalars("temperature", scales, step)
        if self.requests.received is not None:
            self.stop(self.requests.received)
        if self.options.save_every_steps and training.progress.step % self.options.save_every_steps == 0:
            self.save()

    def watch(self, batches: Iterable[Any]) -> Iterable[Any]:
        """Pass the batches of an evaluation on, and stop when asked to."""
        for batch in batches:
            if self.requests.received is not None:
                self.stop(self.requests.received)
            yield batch

    def stop(self, number: int) -> NoReturn:
        """Save and end the program."""
        self.save()
        raise Stopped(number, f"stopped and saved; go on with: python method/train.py --resume {self.folder.path}")


if __name__ == "__main__":
    run_command(main)
