"""The evaluation of a checkpoint as a run with a folder of its own."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

from easydict import EasyDict

from method.config.options import choose_device, make_architecture, plain
from method.config.settings import evaluation_settings
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


def evaluate_checkpoint(options: EasyDict, processes: Processes = SINGLE_PROCESS) -> Path:
    """Evaluate `options.eval_ckpt` on the evaluation split; results go to a new run folder."""
    needed = [name for name in DATA_FILES if name != "caption_train_txt"]
    with processes.raise_on_all():
        device = choose_device(options.device, options.device_ids, processes.local_rank)
        enable_fast_matmul(device)
        loaded = load_model(options.eval_ckpt, make_architecture(options))
        model = loaded.model.to(device)
        reader = open_features(options, options.dataset_name, model.architecture, options.root_path, needed)
        check_recipe(reader, options.recipe, options.eval_ckpt)
        split = check_split("evaluated split", options.caption_test_txt, reader)
        log.info(describe(split))
        if processes.is_first:
            check_content(split, reader)
        moments = known_moments(options.moments, split)
        right_videos = known_right_videos(options.multi_gt, options.multi_gt_subset, split)
    with processes.raise_on_all():
        folder = new_run(options) if processes.is_first else None
    path = processes.broadcast(folder.path if folder else Path())
    with folder or contextlib.nullcontext():
        with processes.raise_on_all():
            log_model_options(options, loaded)  # once the folder's log is open
            if folder:
                write_json(path / OPTIONS, plain(options))
            reader = with_cache(reader, [split], options.feature_cache, options.num_workers)
            evaluator = SplitEvaluator(evaluation_settings(options), reader, split, device, processes, right_videos)
        evaluation = evaluator.evaluate(model, path if options.save_scores else None, moments)
        if folder:
            given = ReportInput(
                model, evaluation, split, options.dataset_name, loaded.epoch, options.eval_ckpt, moments
            )
            write_results(folder, given, loaded.sha256, plain(options), options.report)
    return path
