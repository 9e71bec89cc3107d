"""Train A3PRVR, or with --only_eval evaluate a checkpoint.

    python method/train.py --dataset_name charades
    python method/train.py --resume results/charades/a3prvr/2026-01-31_12-00-00
    python method/train.py --dataset_name charades --description first --resume auto
    torchrun --nproc_per_node 4 method/train.py ...
    python method/train.py --help

configs/<dataset>.yaml has the published values; flags override it. A run writes
results/<dataset>/<exp_id>/<description or start time>/.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import method  # noqa: F401 (sets OpenMP variables before torch is imported)

import torch
from easydict import EasyDict

from method.config.architecture import make_architecture
from method.config.options import plain, read_options
from method.config.parser import AUTO
from method.config.settings import (
    checkpoint_evaluation,
    dataset_files,
    evaluation_settings,
    fixed_fusion_weight,
    negatives_settings,
    run_name,
)
from method.config.training_settings import training_settings
from method.data.batch import EpochBatches
from method.data.cache.feature_cache import with_cache
from method.data.provenance import check_recipe
from method.evaluation.report.input import ReportInput
from method.evaluation.split_evaluator import SplitEvaluator, known_moments, known_right_videos, write_results
from method.model.retrieval import RetrievalModel
from method.negatives.source import open_negatives
from method.ops.precision import enable_fast_matmul
from method.runtime.errors import InputError, run_command
from method.runtime.files import write_json
from method.runtime.hardware import choose_device
from method.runtime.process_group import joined_processes
from method.runtime.processes import SINGLE_PROCESS, Processes
from method.runtime.progress import be_quiet
from method.runtime.run_folder import BEST, OPTIONS, log_to_terminal
from method.runtime.signals import StopRequests
from method.training.build import make_training, open_splits, training_loader
from method.training.evaluation_run import evaluate_checkpoint
from method.training.initialization import initialize
from method.training.loop import seed_everything
from method.training.restore import fingerprints, restore
from method.training.resume import find_run, open_run, saved_options
from method.training.run import TrainingRun

log = logging.getLogger(__name__)

DEBUG_EPOCHS = 2


def main(arguments: Sequence[str] | None = None) -> Path:
    """Run the command line; returns the folder of the run."""
    with joined_processes() as processes:
        log_to_terminal(processes.is_first)
        with processes.raise_on_all():
            options = read_options(arguments, saved=saved_options)
            be_quiet(options.quiet or not processes.is_first)
            for flag in ("eval_ckpt", "zero_shot"):
                if options[flag] and not options.only_eval:
                    raise InputError(f"--{flag} needs --only_eval; use --resume to continue a run")
            if options.debug:
                options.n_epoch = DEBUG_EPOCHS
            device = choose_device(options.device, options.device_ids, processes.local_rank)
        if options.only_eval:
            return evaluate_checkpoint(checkpoint_evaluation(options), device, plain(options), processes)
        if options.resume == AUTO and (finished := resolve_auto(options, processes)):
            log.info("%s: the run is finished, nothing to do", finished)
            return finished
        return train(options, device, processes)


def resolve_auto(options: EasyDict, processes: Processes = SINGLE_PROCESS) -> Path | None:
    """Replace `--resume auto` by the run to resume, or None to start one; returns the run if it is already finished."""
    with processes.raise_on_all():
        found = find_run(run_name(options), plain(options)) if processes.is_first else (None, False)
    options.resume, finished = processes.broadcast(found)
    return options.resume if finished else None


def train(options: EasyDict, device: torch.device, processes: Processes = SINGLE_PROCESS) -> Path:
    """Train, select the best epoch, evaluate it on the evaluated split and write its metrics."""
    settings, evaluation = training_settings(options), evaluation_settings(options)
    with processes.raise_on_all():
        if options.bsz < processes.count:
            raise InputError(f"--bsz {options.bsz}: expected at least {processes.count}, one video per process")
        enable_fast_matmul(device)
        seed_everything(options.seed)
        model = RetrievalModel(make_architecture(options))
        if not processes.is_first:  # same weights on all ranks, different dropout
            seed_everything(options.seed, processes.rank)
        reader, splits = open_splits(dataset_files(options), model.architecture, settings)
        if evaluation.fusion_weight is None:
            log.info("the fusion weight is fitted to the %s", splits.selecting.name)
        options.feature_recipe = check_recipe(reader, options.feature_recipe, f"dataset {options.dataset_name}")
        moments = known_moments(options.moments, splits.reported)
        right_videos = known_right_videos(options.multi_gt, options.multi_gt_subset, splits.reported)
        ids = [caption.id for caption in (*splits.training_file, *splits.reported.captions)]
        negatives = open_negatives(negatives_settings(options), splits.training_file, ids, device, reader)
        parts = [splits.training, splits.selecting, splits.reported]
        data = fingerprints(parts, reader) if processes.is_first else {}
        saved = plain(options)
    with processes.raise_on_all():
        folder, state = (
            open_run(run_name(options), options.resume, saved, processes.count) if processes.is_first else (None, None)
        )
    path, state, data = processes.broadcast((folder.path if folder else Path(), state, data))
    with folder or contextlib.nullcontext(), StopRequests(repeated=processes.count > 1) as requests:
        order = EpochBatches(len(splits.training.video_ids), options.bsz, options.seed, processes.rank, processes.count)
        if state is None:
            initialize(model, settings.initialization, reader, splits.training.captions, processes)
        training = make_training(settings, model, len(order), device, negatives, processes)
        with processes.raise_on_all():
            if state is not None:
                restore(training, state, path, data)
            if folder:
                folder.archive_results()
                write_json(path / OPTIONS, saved)
        run = TrainingRun(
            path,
            training,
            order,
            requests,
            save_every_steps=settings.save_every_steps,
            options=saved,
            data=data,
        )
        with contextlib.closing(run.monitor):
            with run.saved_when_stopped():
                with processes.raise_on_all():
                    reader = with_cache(reader, parts, options.feature_cache, options.num_workers)
                    evaluator_of = partial(SplitEvaluator, evaluation, reader)
                    labels = right_videos if splits.selecting is splits.reported else None
                    selector = evaluator_of(splits.selecting, device, processes, labels)
                    loader = training_loader(settings, reader, splits.training, order, device, negatives)
                run.epochs(loader, selector)
                best = run.best()
                evaluator = selector
                if splits.reported is not splits.selecting:
                    evaluator = evaluator_of(splits.reported, device, processes, right_videos)
                scores_in = path if options.save_scores else None
                assert best.options is not None
                evaluator.settings = replace(evaluation, fusion_weight=fixed_fusion_weight(best.options))
                result = evaluator.evaluate(best.model.to(device), scores_in, moments)
            if folder:  # not interruptible: only rank 0 does this, so the others could not stop with it
                given = ReportInput(
                    best.model, result, splits.reported, options.dataset_name, best.epoch, path / BEST, moments
                )
                write_results(folder, given, best.sha256, saved, options.report)
                run.show_result(result)
    return path


if __name__ == "__main__":
    run_command(main)
