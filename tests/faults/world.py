"""What the faults act on: a tiny dataset, undisturbed runs on it, and what must hold for every run."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import random
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from method.data.captions import read_captions
from method.runtime.files import read_json
from method.training.checkpoint import load_model
from method.training.checkpoint_file import read_checkpoint
from tests.faults.programs import Lost, Outcome, Program, Starter
from tests.helpers.small_dataset import SmallDataset
from tests.helpers.tiny_text_encoder import make_text_encoder

EPOCHS = 3
CPU = ("--device", "-1")
# Flags of trainings that give the same weights.
WAYS: dict[str, tuple[str, ...]] = {
    "saving every step": ("--save_every_steps", "1"),
    "with workers": ("--save_every_steps", "2", "--num_workers", "2"),
    "saving every epoch": (),
}


class Skipped(Exception):
    """The fault cannot be produced on this machine."""


@dataclass(frozen=True)
class Fault:
    """A kind of fault.

    attempt: makes it happen once at a random moment; raises Lost if anything is lost, Skipped if impossible here.
    tries: how often in a full run; the ordinary tests attempt it once.
    """

    name: str
    attempt: Callable[[World, random.Random], None]
    tries: int


class World:
    """A dataset below `root`, and programs that work on it."""

    def __init__(self, root: Path, starter: Starter) -> None:
        self.root = root
        self.starter = starter
        self.data = SmallDataset(root / "data")
        self._numbers = itertools.count()

    def fresh(self, what: str) -> Path:
        """A new path of this name, in a new folder."""
        folder = self.root / f"{what}{next(self._numbers)}"
        folder.mkdir()
        return folder / what

    def copy_of_data(self) -> SmallDataset:
        """The dataset again, to be damaged."""
        root, data = self.fresh("data"), copy.copy(self.data)
        shutil.copytree(self.data.root / "dataset", root / "dataset")
        for name, path in vars(self.data).items():
            setattr(data, name, root / path.relative_to(self.data.root))
        return data

    def start_training(
        self, run: Path, way: Sequence[str] = (), data: SmallDataset | None = None, **settings: Any
    ) -> Program:
        """Start a training in the folder `run`, or resume the one there."""
        if (run / "opt.json").exists():
            arguments = ["--resume", str(run), *CPU]
        else:
            place = ("--results_root", str(run.parents[2]), "--exp_id", run.parent.name, "--description", run.name)
            arguments = (data or self.data).flags(*place, "--n_epoch", str(EPOCHS), *way)
        return self.starter.start("method.train", arguments, **settings)

    def new_run(self, root: Path | None = None) -> Path:
        """The folder of a run that does not exist yet."""
        return (root or self.data.root / "results") / "demo" / "a3prvr" / f"run{next(self._numbers)}"

    def finish(self, run: Path, way: Sequence[str] = ()) -> None:
        """Train or resume undisturbed to the end, and expect the result of the reference run."""
        if not (run / "metrics.json").exists():
            self.start_training(run, way).wait().expect_done()
        expect_whole(run)
        expect_same_result(run, self.reference)
        expect_no_parts(run)

    @cached_property
    def durations(self) -> dict[str, float]:
        """Seconds that each of WAYS takes undisturbed."""
        durations = {"saving every epoch": self._reference[1]}
        for name in WAYS.keys() - durations.keys():
            run, started = self.new_run(), time.monotonic()
            self.start_training(run, WAYS[name]).wait().expect_done()
            durations[name] = time.monotonic() - started
            expect_same_result(run, self.reference)
        return durations

    @property
    def reference(self) -> Path:
        """An undisturbed run."""
        return self._reference[0]

    @cached_property
    def _reference(self) -> tuple[Path, float]:
        run, started = self.new_run(), time.monotonic()
        self.start_training(run).wait().expect_done()
        return run, time.monotonic() - started

    @cached_property
    def answer(self) -> Any:
        """The results of a search with the first evaluated caption."""
        arguments = ["--eval_ckpt", str(self.reference / "model.ckpt"), "--query_id", "E00#enc#0", "--json", *CPU]
        place = ["--index_dir", str(self.fresh("index"))]
        outcome = self.starter.start("method.search", [*arguments, *place]).wait()
        outcome.expect_done()
        return answer(outcome)

    @cached_property
    def extended(self) -> Path:
        """A finished run that was extended by one epoch."""
        run = self.new_run()
        shutil.copytree(self.reference, run)
        self.start_extension(run).wait().expect_done()
        return run

    def start_extension(self, run: Path, **settings: Any) -> Program:
        """Start or resume the extension of a finished run by one epoch."""
        return self.starter.start(
            "method.train", ["--resume", str(run), *CPU, "--n_epoch", str(EPOCHS + 1)], **settings
        )

    @cached_property
    def stopped(self) -> Path:
        """A run that was stopped in its second epoch."""
        run = self.new_run()
        program = self.start_training(run, WAYS["saving every step"], handicaps={"slow_steps": (0.2,)})
        program.wait_for("epoch 0")
        program.send(signal.SIGTERM)
        program.wait()
        return run

    @cached_property
    def other_run(self) -> Path:
        """A run with another seed."""
        run = self.new_run()
        self.start_training(run, ("--seed", "8")).wait().expect_done()
        return run

    @cached_property
    def text_encoder(self) -> Path:
        """A small encoder of edited captions."""
        captions = read_captions(self.data.train_txt)
        return make_text_encoder(self.root / "encoder", [caption.text for caption in captions], width=8)

    def start_caching(
        self, folder: Path, data: SmallDataset | None = None, encoder: Path | None = None, **handicaps: Any
    ) -> Program:
        """Start or continue a cache of edited captions."""
        arguments = self._cache_flags(folder, data or self.data)
        arguments += ["--text_encoder", str(encoder or self.text_encoder)]
        return self.starter.start("utils.cache_negatives", arguments, {"small_blocks": (), **handicaps})

    def start_with_cache(self, folder: Path, data: SmallDataset | None = None) -> Program:
        """Start a short training with the edited captions of a cache."""
        arguments = self._cache_flags(folder, data or self.data)
        place = ("--results_root", str(self.data.root / "results"), "--description", self.new_run().name)
        return self.starter.start("method.train", [*arguments, *place, "--n_epoch", "1"], {"small_blocks": ()})

    def _cache_flags(self, folder: Path, data: SmallDataset) -> list[str]:
        encoder = ("--text_encoder", str(self.text_encoder), "--neg_query_loss", "both", "--neg_action_num", "2")
        return data.flags(*encoder, "--neg_object_num", "2", "--neg_cache", str(folder))

    @cached_property
    def cache(self) -> Path:
        """An undisturbed cache of edited captions."""
        folder = self.fresh("cache")
        self.start_caching(folder).wait().expect_done()
        return folder


def expect_whole(run: Path) -> None:
    """Lost if a file of a run is incomplete."""
    for path in sorted(run.glob("*")) if run.exists() else []:
        try:
            _read(path)
        except Exception as error:
            raise Lost(f"{path.name} is incomplete: {error}") from error


def expect_no_parts(folder: Path) -> None:
    """Lost if a temporary file is left."""
    if left_over := [str(path) for path in folder.rglob("*.part")]:
        raise Lost(f"left behind: {left_over}")


def _read(path: Path) -> None:
    if path.suffix == ".ckpt":
        content = read_checkpoint(path)
        if "architecture" in content:
            load_model(path, content["architecture"])
    elif path.suffix == ".json":
        read_json(path)
    elif path.suffix == ".jsonl":
        for line in path.read_text().splitlines():
            json.loads(line)
    elif path.suffix == ".npz":
        with np.load(path) as arrays:
            for name in arrays:
                arrays[name]


def expect_same_result(run: Path, reference: Path) -> None:
    """Lost unless weights, state, history and metrics of two runs are equal to the last bit."""
    for name in ("model.ckpt", "last.ckpt"):
        ours, theirs = (read_checkpoint(folder / name) for folder in (run, reference))
        for part in theirs:
            if part != "options" and not same(ours.get(part), theirs[part]):
                raise Lost(f"{name}: {part!r} differs from the reference run")
    if (run / "history.jsonl").read_bytes() != (reference / "history.jsonl").read_bytes():
        raise Lost("history.jsonl differs from the reference run")
    expect_same_metrics(run, reference)


def expect_same_metrics(run: Path, reference: Path) -> None:
    """Lost unless the metrics are equal and their checkpoint has the recorded hash."""
    ours, theirs = (read_json(folder / "metrics.json") for folder in (run, reference))
    numbers = [name for name in theirs if name not in ("checkpoint", "options", "environment")]
    if any(ours.get(name) != theirs[name] for name in numbers):
        raise Lost("metrics.json differs from the reference run")
    checkpoint = Path(ours["checkpoint"]["path"])
    if digest(checkpoint) != ours["checkpoint"]["sha256"]:
        raise Lost("metrics.json names the hash of another checkpoint")


def same(one: Any, other: Any) -> bool:
    """Whether two contents of checkpoints are equal to the last bit."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return (
            one.dtype == other.dtype and one.shape == other.shape and one.numpy().tobytes() == other.numpy().tobytes()
        )
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and bool(one == other)


def digest(path: Path) -> str:
    """Digest of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def answer(outcome: Outcome) -> Any:
    """The results of a search without its duration."""
    return {name: value for name, value in json.loads(outcome.output).items() if name != "seconds"}
