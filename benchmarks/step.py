"""Time and memory of a training step, compared with a naive implementation of the published step.

    python benchmarks/step.py                          # Charades launch shapes, every video 128 frames long
    python benchmarks/step.py --lengths short          # short videos, as in real data
    python benchmarks/step.py --amp bf16 --only ours
    python benchmarks/step.py --memory ours            # peak memory of a step; one program per process
    python benchmarks/step.py --profile                # time of our step by kind of operation, see step_profile.py

Both start from the same weights and see the same batch. Their scores without dropout must agree before anything is
timed. `fed_step` times steps fed by a data loader.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import method  # noqa: F401 (sets OpenMP variables before torch is imported)

import numpy as np
import torch
from torch.utils.data import Dataset

from benchmarks.measure import DEVICE, alternate, as_published, as_trained, compare, machine, peak_memory_mb
from benchmarks.step_profile import profiled
from method.config.architecture import make_architecture
from method.config.options import read_options
from method.config.training_settings import LoopSettings
from method.data.batch import EpochBatches, EpochIndices, Loader, VideoBatch
from method.data.captions import Caption
from method.data.edits import KINDS, NegativeSource
from method.data.preprocessing import normalize_rows
from method.data.ragged import Ragged
from method.model.losses import LossSettings
from method.model.published import to_published
from method.model.retrieval import RetrievalModel
from method.model.scoring import similarity
from method.training.loop import Training
from method.training.optimizer import Schedule
from tests.helpers.reference_model import split_values
from tests.helpers.reference_step import NaiveStep

# The model of do_charades.sh, with the offsets that the recorded times were measured with.
LAUNCH = make_architecture(
    read_options(
        shlex.split(
            "--dataset_name charades --phrase_action_branch --flow_feat --cross_branch_fusion --deformable_attn "
            "--deformable_offset_scale 12 --fusion_extent padded"
        )
    )
)
VIDEOS, CAPTIONS = 128, 297
MAX_STEPS = 10_000  # of a data loader
LOSSES = LossSettings()


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the times, or the peak memory of one program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", choices=("full", "short"), default="full")
    parser.add_argument("--extent", choices=("padded", "valid"), default="padded")
    parser.add_argument(
        "--amp", choices=("off", "bf16"), default="off", help="precision of our step; the naive one is float32"
    )
    parser.add_argument("--only", choices=("ours", "naive"))
    parser.add_argument("--memory", choices=("ours", "naive", "none"), help="peak memory instead of times")
    parser.add_argument(
        "--profile", action="store_true", help="profile our step instead of timing, see step_profile.py"
    )
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    batch = random_batch(options.lengths)
    if DEVICE.type == "cuda":
        batch = batch.pin_memory()  # as data loaders do
    programs = make_programs(batch, DEVICE, options.extent, options.amp)
    if options.memory:
        if options.memory != "none":
            programs[options.memory]()
            programs[options.memory]()
        print(f"{options.memory}: peak memory {peak_memory_mb():.0f} MiB")
        return
    print(f"{machine()}; {options.lengths} videos, {options.extent}, amp {options.amp}")
    if options.profile:
        print(profiled(programs["ours"], options.amp, options.rounds))
        return
    chosen = {name: program for name, program in programs.items() if options.only in (None, name)}
    print(compare(alternate(chosen, options.rounds), next(iter(chosen))))


def random_batch(
    lengths: str, captions: Sequence[Caption] | None = None, tokens: Sequence[int] | None = None
) -> VideoBatch:
    """A random batch with the shapes of Charades; short videos have the lengths of TVR clips at the usual frame rates.

    Args:
        lengths: full (128 frames) or short.
        captions: captions to use; by default 297, as long as TVR's.
        tokens: number of tokens of each caption.
    """
    count = CAPTIONS if captions is None else len(captions)
    rng = np.random.default_rng(0)
    full = np.full(VIDEOS, 128)
    frames = full if lengths == "full" else np.clip(rng.normal(50, 22, VIDEOS).round().astype(int), 8, 128)
    other = full if lengths == "full" else np.clip((frames * 1.5).astype(int), 8, 128)
    lengths_Q = np.clip(rng.normal(17, 6, count).round().astype(int), 5, 30) if tokens is None else np.array(tokens)
    generator = torch.Generator().manual_seed(0)

    def rows(sizes: np.ndarray, width: int) -> Ragged:  # type: ignore[type-arg]
        return Ragged.of([normalize_rows(torch.randn(int(n), width, generator=generator)) for n in sizes])

    labels = torch.sort(torch.cat([torch.arange(VIDEOS), torch.from_numpy(rng.integers(0, VIDEOS, count - VIDEOS))]))
    if captions is None:
        captions = [Caption(f"v{video}#enc#{i}", f"v{video}", "") for i, video in enumerate(labels.values.tolist())]
    streams = {"action": rows(frames, 1024), "object": rows(other, 512)}
    ids = tuple(f"v{i}" for i in range(VIDEOS))
    return VideoBatch(ids, streams, tuple(captions), rows(lengths_Q, 1024), labels.values)


def make_programs(batch: VideoBatch, device: torch.device, extent: str, amp: str) -> dict[str, Callable[[], object]]:
    """The naive step and ours, after checking that their scores without dropout agree."""
    torch.manual_seed(0)
    model = RetrievalModel(replace(LAUNCH, fusion_extent=extent))  # type: ignore[arg-type]
    naive = NaiveStep(to_published(model.state_dict(), model.architecture), model.architecture, LOSSES, device)
    training = make_training(model, amp, device)
    check_equal(model, naive, batch, device)
    return {
        "naive": as_published(lambda: naive.step(batch)),
        "ours": as_trained(lambda: training.step(batch), device),
    }


def make_training(
    model: RetrievalModel, amp: str, device: torch.device, source: NegativeSource | None = None
) -> Training:
    """A new training with the settings of the launch scripts."""
    settings = LoopSettings(
        epochs=100,
        early_stop=10,
        hard_from_epoch=20,
        grad_clip=-1,
        amp=amp,
        losses=LOSSES,
        seed=0,
        edit_kinds={kind: kind for kind in KINDS if kind in model.temperatures},
    )
    return Training(model, settings, Schedule(peak=2.5e-4, warmup=0.01, steps=1000), 0.01, device, source)


@torch.no_grad()
def check_equal(model: RetrievalModel, naive: NaiveStep, batch: VideoBatch, device: torch.device) -> None:
    """AssertionError unless both programs give the first two videos the same scores to 1e-4."""
    few = {name: Ragged.of(split_values(rows)[:2]) for name, rows in batch.streams.items()}
    few = {name: rows.to(device) for name, rows in few.items()}
    assert batch.tokens is not None
    queries = model.eval().encode_queries(batch.tokens.to(device))
    keys = naive.model.eval().encode_videos(few["action"], few["object"])
    for name, rows in model.encode_videos(few).items():
        torch.testing.assert_close(
            similarity(rows, queries[name]).raw_QB, naive.best(*keys[name], queries[name]), atol=1e-4, rtol=1e-4
        )
    model.train()
    naive.model.train()


class RepeatedBatch(Dataset[VideoBatch]):
    """The same batch for every index, with edited captions that change with the index if there is a source of them."""

    def __init__(self, batch: VideoBatch, source: NegativeSource | None) -> None:
        self.batch, self.source = batch, source

    def __getitems__(self, drawn: EpochIndices) -> VideoBatch:
        """The batch, with the edited captions of the epoch numbered as the first index."""
        if self.source is None:
            return self.batch
        return replace(self.batch, edits=self.source.prepare(self.batch.captions, drawn.indices[0]))


def fed_step(batch: VideoBatch, source: NegativeSource | None, amp: str, workers: int) -> Callable[[], object]:
    """A training step fed by a data loader, with edited captions in both branches; workers prefetch between steps."""
    branches = () if source is None else ("action", "object")
    model = RetrievalModel(replace(LAUNCH, temperatures=branches)).train()
    training = make_training(model, amp, DEVICE, source)
    order = EpochBatches(MAX_STEPS, batch_size=1, seed=0)
    batches = iter(Loader(RepeatedBatch(batch, source), order, workers, pinned=DEVICE.type == "cuda"))
    return as_trained(lambda: training.step(next(batches)), DEVICE)


if __name__ == "__main__":
    main()
