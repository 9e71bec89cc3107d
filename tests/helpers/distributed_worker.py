"""One process of a distributed training: with the environment of torchrun from its arguments, and faults on the way.

    main RANK COUNT PORT EVENTS MODULE ARGUMENT ...

EVENTS is JSON, the number of a process -> [[function of this module, argument ...], ...].
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import sys
import time
from typing import Any

import torch

from method import train
from method.data.batch import VideoBatch
from method.evaluation.split_evaluator import SplitEvaluator
from method.runtime import process_group
from method.training.loop import Training


def main() -> None:
    """Become the process and run the module's main function."""
    rank, count, port, events, module, *arguments = sys.argv[1:]
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "CUDA_VISIBLE_DEVICES": ""}
    for name, *values in json.loads(events).get(rank, []):
        globals()[name](*values)
    sys.argv[1:] = arguments
    importlib.import_module(module).main()


def signal_at_step(wanted: int, number: int) -> None:
    """Get a signal in the middle of a step, counted over epochs from 0."""
    _before(Training, "step", wanted, lambda *arguments: os.kill(os.getpid(), number))


def signal_at_evaluation(wanted: int, number: int) -> None:
    """Get a signal at the beginning of an evaluation, counted from 0."""
    _before(SplitEvaluator, "evaluate", wanted, lambda *arguments: os.kill(os.getpid(), number))


def nan_in_step(wanted: int) -> None:
    """Have NaN features in a step."""

    def fill(training: Training, batch: VideoBatch) -> None:
        for rows in batch.streams.values():
            rows.values.fill_(torch.nan)

    _before(Training, "step", wanted, fill)


def save_weights_at_step(wanted: int, path: str) -> None:
    """Save the weights of the model at the beginning of a step."""
    _before(Training, "step", wanted, lambda training, batch: torch.save(training.model.state_dict(), path))


def set_stop_timeout(seconds: float) -> None:
    """Set how long to wait for the others after a request to stop."""
    process_group._SECONDS_TO_STOP = seconds


def report_late(seconds: float) -> None:
    """Sleep before the final evaluation is written."""
    _before(train, "write_results", 0, lambda *arguments: time.sleep(seconds))


def _before(owner: Any, name: str, wanted: int, act: Any) -> None:
    count, real = itertools.count(), getattr(owner, name)

    def method(*arguments: Any, **named: Any) -> Any:
        if next(count) == wanted:
            act(*arguments)
        return real(*arguments, **named)

    setattr(owner, name, method)
