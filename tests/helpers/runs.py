"""Comparing runs, and interrupting them."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from method.training.checkpoint_file import read_checkpoint
from method.training.loop import Training
from tests.helpers.small_dataset import history, metrics

EPOCHS = 3
STEPS = 3  # of an epoch: 12 videos, 5 a batch


def same_content(one: Any, other: Any) -> bool:
    """Whether two checkpoints' contents are equal to the last bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same_content(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(same_content(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


def assert_same_run(run: Path, reference: Path) -> None:
    """Weights, history, metrics and training state are bit-identical."""
    assert history(run) == history(reference)
    assert metrics(run) == metrics(reference)
    for name, parts in (
        ("model.ckpt", ("model", "epoch")),
        ("last.ckpt", ("model", "optimizer", "progress", "random", "scaler")),
    ):
        ours, theirs = (read_checkpoint(folder / name) for folder in (run, reference))
        for part in parts:
            assert same_content(ours[part], theirs[part]), (name, part)


class Crash(Exception):
    """Ends a program without saving anything, as a kill does."""


def crash() -> None:
    raise Crash


def send(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


class Interruption:
    """Calls a function within one training step, counted over epochs from 0."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self._step = Training.step

    def at(self, wanted: int, act: Callable[[], None]) -> None:
        count, real = itertools.count(), self._step

        def step(training: Training, batch: Any) -> dict[str, float]:
            if next(count) == wanted:
                act()
            return real(training, batch)

        self._monkeypatch.setattr(Training, "step", step)

    def over(self) -> None:
        self._monkeypatch.setattr(Training, "step", self._step)
