"""Evaluate a checkpoint, trained here or published, or zero-shot CLIP.

    python method/evaluate.py --eval_ckpt results/charades/a3prvr/2026-01-31_12-00-00/model.ckpt
    python method/evaluate.py --dataset_name tvr --eval_ckpt checkpoints/tvr.ckpt
    python method/evaluate.py --dataset_name charades --zero_shot

A checkpoint trained here stores its options; a published one takes them from configs/<dataset>.yaml. Results go to a
new run folder: metrics.json, with --save_scores scores.npz, and with --report report/index.html (figures, failure
cases). The other flags of train.py are accepted without effect, so that a launcher's command line works.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import method  # noqa: F401 (sets OpenMP variables before torch is imported)

from method.config.options import plain, read_options
from method.config.settings import checkpoint_evaluation
from method.runtime.errors import InputError, run_command
from method.runtime.hardware import choose_device
from method.runtime.process_group import joined_processes
from method.runtime.progress import be_quiet
from method.runtime.run_folder import log_to_terminal
from method.training.evaluation_run import evaluate_checkpoint
from method.training.resume import saved_options

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
    "feature_recipe",
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
            if not (options.eval_ckpt or options.zero_shot):
                raise InputError("--eval_ckpt FILE or --zero_shot is missing")
            device = choose_device(options.device, options.device_ids, processes.local_rank)
        return evaluate_checkpoint(checkpoint_evaluation(options), device, plain(options), processes)


if __name__ == "__main__":
    run_command(main)
