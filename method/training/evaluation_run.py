"""The evaluation of a checkpoint as a run with a folder of its own."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from method.config.settings import CheckpointEvaluation
from method.data.cache.feature_cache import with_cache
from method.data.dataset_files import DATA_FILES, open_features
from method.data.provenance import check_recipe
from method.data.splits import check_content, check_split, describe
from method.evaluation.report.input import ReportInput
from method.evaluation.split_evaluator import SplitEvaluator, known_moments, known_right_videos, write_results
from method.ops.precision import enable_fast_matmul
from method.runtime.files import write_json
from method.runtime.processes import SINGLE_PROCESS, Processes
from method.runtime.run_folder import OPTIONS, new_run
from method.training.checkpoint import load_model, log_model_options

log = logging.getLogger(__name__)


def evaluate_checkpoint(
    settings: CheckpointEvaluation,
    device: torch.device,
    options: Mapping[str, Any],
    processes: Processes = SINGLE_PROCESS,
) -> Path:
    """Evaluate a checkpoint on the evaluation split; results go to a new run folder, which is returned.

    options: of the run as JSON values, written beside the results.
    """
    with processes.raise_on_all():
        enable_fast_matmul(device)
        loaded = load_model(settings.checkpoint, settings.architecture)
        model = loaded.model.to(device)
        files = settings.files
        needed = [name for name in DATA_FILES if name != "caption_train_txt"]
        reader = open_features(files, model.architecture, needed)
        check_recipe(reader, files.recipe, settings.checkpoint)
        assert files.caption_test_txt is not None
        split = check_split("evaluated split", files.caption_test_txt, reader)
        log.info(describe(split))
        if processes.is_first:
            check_content(split, reader)
        moments = known_moments(settings.moments, split)
        right_videos = known_right_videos(settings.multi_gt, settings.multi_gt_subset, split)
    with processes.raise_on_all():
        folder = new_run(settings.name, evaluation=True) if processes.is_first else None
    path = processes.broadcast(folder.path if folder else Path())
    with folder or contextlib.nullcontext():
        with processes.raise_on_all():
            log_model_options(loaded, settings.architecture, options)  # once the folder's log is open
            if folder:
                write_json(path / OPTIONS, options)
            reader = with_cache(reader, [split], settings.feature_cache, settings.evaluation.workers)
            evaluator = SplitEvaluator(settings.evaluation, reader, split, device, processes, right_videos)
        evaluation = evaluator.evaluate(model, path if settings.save_scores else None, moments)
        if folder:
            given = ReportInput(model, evaluation, split, files.dataset, loaded.epoch, settings.checkpoint, moments)
            write_results(folder, given, loaded.sha256, options, settings.report)
    return path
