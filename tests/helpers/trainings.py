"""Trainings that a program starts as processes, run in the process of the test."""

from __future__ import annotations

import signal
from collections.abc import Sequence

from method.runtime.errors import InputError, Stopped
from tests.helpers.runs import Crash
from tests.helpers.small_dataset import run_train
from utils.runs import trainings


class InThisProcess:
    """In the place of a process: the training runs here, and a crash is that of a killed process."""

    seeds: list[str]

    def __init__(self, command: Sequence[str], env: dict[str, str]) -> None:
        flags = command[command.index(str(trainings.TRAIN)) + 1 :]
        self.seeds.append(flags[flags.index("--seed") + 1])
        self.status = 0
        try:
            run_train(flags)
        except Crash:
            self.status = -signal.SIGKILL
        except InputError:
            self.status = 2
        except Stopped as stop:
            self.status = 128 + stop.signal

    def wait(self, timeout: float | None = None) -> int:
        return self.status

    def poll(self) -> int:
        return self.status
