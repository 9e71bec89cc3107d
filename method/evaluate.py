"""Evaluate a checkpoint, trained here or published.

    python method/evaluate.py --eval_ckpt results/charades/a3prvr/2026-01-31_12-00-00/model.ckpt
    python method/evaluate.py --dataset_name tvr --eval_ckpt checkpoints/tvr.ckpt

A checkpoint trained here stores its options; a published one takes them from configs/<dataset>.yaml. Results go to a
new run folder: metrics.json, with --save_scores scores.npz, and with --report report/index.html (figures, failure
cases). The other flags of train.py are accepted without effect, so that a launcher's command line works.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import method  # noqa: F401 (sets OpenMP variables before torch is imported)

from easydict import EasyDict

from method.config.options import choose_device, make_architecture, plain, read_options
from method.config.settings import evaluation_settings
from method.data.cache.feature_cache import with_cache
from method.data.dataset_files import DATA_FILES, open_features
from method.data.splits import check_content, check_split, describe
from method.evaluation.report.input import ReportInput
from method.evaluation.split_evaluator import SplitEvaluator, known_moments, write_results
from method.ops.precision import enable_fast_matmul
from method.runtime.errors import InputError, run_command
from method.runtime.files import write_json
from method.runtime.process_group import joined_processes
from method.runtime.processes import SINGLE_PROCESS, Processes
from method.runtime.progress import be_quiet
from method.runtime.run_folder import OPTIONS, log_to_terminal, new_run
from method.training.checkpoint import load_model, log_model_options
from method.training.resume import saved_options

log = logging.getLogger(__name__)

_LISTED_FLAGS = [
    "dataset_name",
    "config",
    "root_path",
    "results_root",
    "exp_id",
    "description",
    "device",
    "device_ids",
    "num_workers",
    "pin_memory",
    "quiet",
    "video_feat_path",
    "text_feat_path",
    "caption_test_txt",
    "feature_cache",
    "model",
    "neg_query_loss",
    "neg_query_loss_branch",
    "evaluation",
]


def main(arguments: Sequence[str] | None = None) -> Path:
    """Run the command line; returns the folder of the results."""
    with joined_processes() as processes:
        log_to_terminal(processes.is_first)
        with processes.raise_on_all():
            options = read_options(
                arguments, "Evaluate a checkpoint of A3PRVR.", listed=_LISTED_FLAGS, saved=saved_options
            )
            be_quiet(options.quiet or not processes.is_first)
            if options.eval_ckpt is None:
                raise InputError("--eval_ckpt FILE is missing")
        return evaluate_checkpoint(options, processes)


def evaluate_checkpoint(options: EasyDict, processes: Processes = SINGLE_PROCESS) -> Path:
    """Evaluate `options.eval_ckpt` on the evaluation split; results go to a new run folder."""
    needed = [name for name in DATA_FILES if name != "caption_train_txt"]
    with processes.raise_on_all():
        device = choose_device(options.device, options.device_ids, processes.local_rank)
        enable_fast_matmul(device)
        loaded = load_model(options.eval_ckpt, make_architecture(options))
        model = loaded.model.to(device)
        log_model_options(options, loaded)
        reader = open_features(options, options.dataset_name, model.architecture, options.root_path, needed)
        split = check_split("evaluated split", options.caption_test_txt, reader)
        log.info(describe(split))
        if processes.is_first:
            check_content(split, reader)
        moments = known_moments(options.moments, split)
    with processes.raise_on_all():
        folder = new_run(options) if processes.is_first else None
    path = processes.broadcast(folder.path if folder else Path())
    with folder or contextlib.nullcontext():
        with processes.raise_on_all():
            if folder:
                write_json(path / OPTIONS, plain(options))
            reader = with_cache(reader, [split], options.feature_cache, options.num_workers)
            evaluator = SplitEvaluator(evaluation_settings(options), reader, split, device, processes)
        evaluation = evaluator.evaluate(model, path if options.save_scores else None)
        if folder:
            given = ReportInput(
                model, evaluation, split, options.dataset_name, loaded.epoch, options.eval_ckpt, moments
            )
            write_results(folder, given, loaded.sha256, plain(options), options.report)
    return path


if __name__ == "__main__":
    run_command(main)
