"""Learning quality: SumR of trainings with a naive implementation of the published step, and ours in fp32 and bf16.

    python benchmarks/learning.py                                  # synthetic data, 8 seeds
    python benchmarks/learning.py --seeds 3 --jobs 1 --programs published fp32
    python benchmarks/learning.py -- --dataset_name charades ...   # options of method/train.py

With the same seed all programs start from the same weights and see the same batches; dropout and random negatives
differ. The result of a training is its best epoch on the evaluated split, as the published code selects. Seeds
differ a lot, so means over seeds are compared, with the standard error of the mean difference from the first program.
"""

from __future__ import annotations

import argparse
import multiprocessing
import shlex
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import method  # noqa: F401 (sets OpenMP variables before torch is imported)

import torch

from benchmarks.measure import machine
from benchmarks.synthetic.dataset import write_dataset
from benchmarks.synthetic.world import Settings
from method.config.architecture import make_architecture
from method.config.options import read_options
from method.config.settings import dataset_files, evaluation_settings
from method.config.training_settings import training_settings
from method.data.batch import EpochBatches, VideoBatch
from method.data.cache.feature_cache import with_cache
from method.evaluation.split_evaluator import SplitEvaluator
from method.model.published import from_published, published_architecture, to_published
from method.model.retrieval import RetrievalModel
from method.ops.precision import enable_fast_matmul
from method.runtime.hardware import choose_device
from method.runtime.progress import be_quiet
from method.training.build import make_training, open_splits, training_loader
from method.training.loop import Training, seed_everything
from tests.helpers.reference_step import NaiveStep

PROGRAMS = ("published", "fp32", "bf16")
SYNTHETIC = shlex.split("""--dataset_name demo --visual_feat_dim 64 --visual_flow_feat_dim 48 --best_frame_loss
    --phrase_action_branch --flow_feat --cross_branch_fusion --deformable_attn --hidden_size 64
    --initializer_range 0.05 --bsz 32 --lr 1e-3 --n_epoch 18 --hard_negative_start_epoch 8 --num_workers 0""")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the SumR of each training and the means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8, help="trainings per program")
    parser.add_argument("--jobs", type=int, default=2, help="parallel trainings, which share the CPU threads")
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=PROGRAMS)
    parser.add_argument(
        "train", nargs="*", help="options of method/train.py after -- (default: the demo's, but for widths and epochs)"
    )
    options = parser.parse_args(arguments)
    threads = max(1, torch.get_num_threads() // options.jobs)
    with tempfile.TemporaryDirectory() as folder:
        train = options.train
        if not train:
            write_dataset(Path(folder), Settings())
            train = [*SYNTHETIC, "--root_path", folder]
        print(f"{machine()}; {options.jobs} in parallel with {threads} threads each", flush=True)
        # One process per training: each has its own threads and memory.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(options.jobs, context, torch.set_num_threads, (threads,)) as pool:
            runs = list(product(range(1, options.seeds + 1), options.programs))
            results = pool.map(best_sumr, *zip(*((program, seed, train) for seed, program in runs), strict=True))
            found: dict[str, list[float]] = {program: [] for program in options.programs}
            for (seed, program), sumr in zip(runs, results, strict=True):
                found[program].append(sumr)
                print(f"seed {seed} {program:10s} {sumr:6.1f}", flush=True)
    print(summary(found))


def best_sumr(program: str, seed: int, train: Sequence[str]) -> float:
    """Highest SumR of the fused score over the epochs of a training."""
    return trained(program, seed, train).progress.best_sumr


def trained(program: str, seed: int, train: Sequence[str]) -> Training:
    """Run a training to its end."""
    be_quiet(True)
    amp = ["--amp", "bf16"] if program == "bf16" else []
    options = read_options([*train, *amp, "--seed", str(seed)])
    device = choose_device(options.device, options.device_ids)
    if program == "published":
        torch.set_float32_matmul_precision("highest")
    else:
        enable_fast_matmul(device)
    seed_everything(seed)
    model = RetrievalModel(make_architecture(options))
    settings = training_settings(options)
    reader, splits = open_splits(dataset_files(options), model.architecture, settings)
    reader = with_cache(reader, [splits.training, splits.selecting], options.feature_cache, options.num_workers)
    order = EpochBatches(len(splits.training.video_ids), options.bsz, seed)
    training = make_training(settings, model, len(order), device)
    if program == "published":
        training = PublishedTraining(training, settings.weight_decay)
    selector = SplitEvaluator(evaluation_settings(options), reader, splits.selecting, device)
    loader = training_loader(settings, reader, splits.training, order, device, None)
    while not training.is_over:
        losses = training.run_epoch(loader, order, lambda terms: None)
        training.finish_epoch(losses, selector.evaluate(training.model).metrics)
    return training


class PublishedTraining(Training):
    """A training whose steps are those of the naive implementation; its weights are copied back after each epoch."""

    def __init__(self, ours: Training, weight_decay: float) -> None:
        super().__init__(ours.model, ours.settings, ours.optimizer.schedule, weight_decay, ours.device, None)
        architecture = published_architecture(self.model.architecture)
        weights = to_published(self.model.state_dict(), architecture)
        self.naive = NaiveStep(weights, architecture, self.settings.losses, self.device)
        self.steps = 0

    def run_epoch(
        self, loader: Iterable[VideoBatch], order: EpochBatches, after_step: Callable[[dict[str, float]], None]
    ) -> dict[str, float]:
        """Run an epoch and copy the weights of the naive implementation to the model."""
        losses = super().run_epoch(loader, order, after_step)
        weights = {name: self.naive.model.w(name).detach() for name in self.naive.model.names}
        self.model.load_state_dict(from_published(weights, self.model.architecture, "naive implementation"))
        return losses

    def step(self, batch: VideoBatch) -> dict[str, float]:
        """One update of the naive implementation."""
        hard = self.progress.epoch >= self.settings.hard_from_epoch
        self.naive.pool = self.settings.losses.hard_pool_size if hard else 0
        loss = self.naive.step(batch, self.optimizer.schedule.learning_rate(self.steps))
        self.steps += 1
        return {"loss": loss}


def summary(found: Mapping[str, Sequence[float]]) -> str:
    """Lines of means and standard deviations, and of the mean differences from the first program, seed by seed.

    >>> print(summary({"a": [1.0, 3.0], "b": [2.0, 6.0]}))
    a          mean    2.0, standard deviation 1.4, 1.0 to 3.0
    b          mean    4.0, standard deviation 2.8, 2.0 to 6.0; 2.0 +- 1.0 more than a
    """
    first = next(iter(found))
    lines = []
    for name, values in found.items():
        line = f"{name:10s} mean {statistics.mean(values):6.1f}"
        if len(values) > 1:
            line += f", standard deviation {statistics.stdev(values):.1f}, {min(values):.1f} to {max(values):.1f}"
            more = [own - base for own, base in zip(values, found[first], strict=True)]
            if name != first:
                error = statistics.stdev(more) / len(more) ** 0.5
                line += f"; {statistics.mean(more):.1f} +- {error:.1f} more than {first}"
        lines.append(line)
    return "\n".join(lines)


if __name__ == "__main__":
    main()
