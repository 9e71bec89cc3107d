"""Trainings as processes, several at a time: stopped with this program, and not left behind when it is killed."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Collection, Generator, Iterable, Mapping, Sequence
from pathlib import Path
from subprocess import Popen, TimeoutExpired
from types import FrameType
from typing import TypeVar

from method.runtime.run_folder import REPOSITORY
from method.runtime.signals import FORWARDED, SIGNALS, StopRequests

log = logging.getLogger(__name__)

TRAIN = REPOSITORY / "method" / "train.py"
_WITH_PARENT = Path(__file__).with_name("with_parent.py")
_GRACE = 1.0  # seconds in which a training may get the signal from the terminal or a queue itself
_POLL = 0.5

Name = TypeVar("Name")


class Trainings(StopRequests):
    """Runs trainings as processes, and stops those that run when this process gets SIGINT or SIGTERM.

    From a terminal or a queue a training gets the signal too, and ignores to be told twice. A second SIGINT ends it
    without saving. When this process is killed, its trainings save and stop; Linux tells them. `received`: the first
    signal, of this process or of one of its trainings.

    Args:
        processes: of each training, by torchrun; None for one without it.
        environment: variables of the trainings, beside those of this process.
    """

    def __init__(self, processes: int | None = None, environment: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self._again = False
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        python = [sys.executable, str(_WITH_PARENT), str(os.getpid()), sys.executable]
        self._command = [*python, *(torchrun if processes else []), str(TRAIN)]
        self._environment = {**(environment or {}), FORWARDED: "1"}
        # torchrun ends its processes itself, unless it is killed.
        self._last = signal.SIGTERM if processes else signal.SIGKILL

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = number
            log.warning("%s: stopping; press Ctrl-C again to quit without saving", signal.Signals(number).name)
        elif number == signal.SIGINT:
            self._again = True

    def run(
        self, trainings: Iterable[tuple[Name, Sequence[str]]], jobs: int = 1
    ) -> Generator[tuple[Name, int], None, None]:
        """Train in this order, `jobs` at a time. After a signal no further training is started.

        Args:
            trainings: the name of each, and its flags.
            jobs: largest number of trainings at a time.

        Yields:
            The name and the exit status of each as it ends; 128 and the number of the signal if one killed the process.
        """
        waiting = iter(trainings)
        running: dict[Popen[bytes], Name] = {}
        try:
            while True:
                while self.received is None and len(running) < jobs:
                    if (following := next(waiting, None)) is None:
                        break
                    name, flags = following
                    running[Popen([*self._command, *flags], env={**os.environ, **self._environment})] = name
                if not running:
                    return
                for training in self._ended(running):
                    status = training.wait()
                    status = status if status >= 0 else 128 - status
                    self.received = self.received or stop_signal(status)
                    yield running.pop(training), status
        finally:
            for training in running:
                training.send_signal(self._last)
                training.wait()

    def _ended(self, running: Collection[Popen[bytes]]) -> list[Popen[bytes]]:
        """Wait until some trainings have ended, and pass signals on meanwhile."""
        noticed: float | None = None  # when the signal was
        passed_on = False
        while True:
            with contextlib.suppress(TimeoutExpired):
                next(iter(running)).wait(_POLL)
            if ended := [training for training in running if training.poll() is not None]:
                return ended
            if self.received is not None and not passed_on:
                noticed = noticed or time.monotonic()
                passed_on = time.monotonic() - noticed >= _GRACE
                self._send(running, self.received if passed_on else None)
            self._send(running, self._last if self._again else None)

    @staticmethod
    def _send(running: Iterable[Popen[bytes]], number: int | None) -> None:
        for training in running:
            if number is not None:
                training.send_signal(number)


def stop_signal(status: int) -> int | None:
    """The signal that stopped a training, by its exit status; None if it ended otherwise."""
    return next((number for number in SIGNALS if status == 128 + number), None)
