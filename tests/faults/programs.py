"""Programs that are started, disturbed and observed from outside."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from tests.helpers.paths import REPOSITORY

PATIENCE = 120.0  # seconds after which a program counts as hanging; each needs about one
_NEVER = ("Traceback (most recent call last)", "Exception ignored", "--- Logging error ---", "Fatal Python error")


class Lost(AssertionError):
    """Something was lost or corrupted."""


@dataclass(frozen=True)
class Outcome:
    """Exit status of a program (-9: killed by signal 9) and its standard output and error."""

    status: int
    output: str
    log: str

    @property
    def last_line(self) -> str:
        """The last line on standard error."""
        return (self.log.splitlines() or [""])[-1]

    def show(self) -> str:
        """The outcome in a few lines, for a message."""
        return f"status {self.status}\n" + "\n".join(self.log.splitlines()[-25:])

    def expect_done(self) -> None:
        """Lost unless the program succeeded."""
        if self.status != 0:
            raise Lost(f"expected success: {self.show()}")
        self.expect_no_traceback()

    def expect_refused(self, *mentioned: object) -> None:
        """Lost unless it exited with status 2 and one error line, the last, with one of these words if given."""
        errors = [line for line in self.log.splitlines() if line.startswith("error: ")]
        if self.status != 2 or len(errors) != 1 or errors[0] != self.last_line:
            raise Lost(f"expected one last line 'error: ...' and status 2: {self.show()}")
        self.expect_no_traceback()
        if mentioned and not any(str(word) in errors[0] for word in mentioned):
            raise Lost(f"expected {' or '.join(map(str, mentioned))} in: {errors[0]}")

    def expect_no_traceback(self) -> None:
        """Lost if a traceback was printed."""
        for words in _NEVER:
            if words in self.log or words in self.output:
                raise Lost(f"{words!r}: {self.show()}")


class Program:
    """A running program, the first process of a session of its own."""

    def __init__(self, pid: int, files: Path) -> None:
        self.pid = pid
        self._files = files

    @property
    def is_running(self) -> bool:
        """Whether it has not ended yet."""
        return not (self._files / "status").exists()

    @property
    def log(self) -> str:
        """Its standard error so far."""
        return (self._files / "stderr").read_text(errors="replace") if (self._files / "stderr").exists() else ""

    def send(self, number: int, to_all: bool = False) -> None:
        """Send a signal to it, or as job schedulers do to all processes of its session, if it is running."""
        with contextlib.suppress(ProcessLookupError):
            if self.is_running:
                (os.killpg if to_all else os.kill)(self.pid, number)

    def wait(self, patience: float = PATIENCE) -> Outcome:
        """Wait for its end. Lost when it hangs."""
        end = time.monotonic() + patience
        while self.is_running:
            if time.monotonic() > end:
                log = self.log
                for pid in self.processes():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                raise Lost(f"hangs for {patience:g} s: {log[-2000:]}")
            time.sleep(0.005)
        output = (self._files / "stdout").read_text(errors="replace")
        return Outcome(int((self._files / "status").read_text()), output, self.log)

    def wait_for(self, words: str) -> None:
        """Wait until these words are in its standard error, or it exits."""
        end = time.monotonic() + PATIENCE
        while words not in self.log and self.is_running and time.monotonic() < end:
            time.sleep(0.005)

    def kill(self) -> None:
        """Send SIGKILL. Lost if a process that it started still runs seconds later."""
        self.send(signal.SIGKILL)
        self.wait()
        self.expect_no_survivors()

    def expect_no_survivors(self, seconds: float = 10.0) -> None:
        """Lost if a process of its session still runs after these seconds."""
        end = time.monotonic() + seconds
        while survivors := self.processes():
            if time.monotonic() > end:
                raise Lost(f"processes {survivors} outlive their main process")
            time.sleep(0.01)

    def processes(self) -> list[int]:
        """The processes of its session that run."""
        return [pid for pid, _, session, state in _processes() if session == self.pid and state not in "ZX"]

    def workers(self) -> list[int]:
        """Its child processes."""
        return [pid for pid, parent, _, state in _processes() if parent == self.pid and state not in "ZX"]


def _processes() -> list[tuple[int, int, int, str]]:
    """Id, parent, session and state of all processes of the machine."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            state, parent, _, session = stat.read_text().rpartition(")")[2].split()[:4]
            found.append((int(stat.parent.name), int(parent), int(session), state))
    return found


class Starter:
    """Starts programs, see `tests/faults/starter.py`; their output goes to files in `folder`.

    leave_quickly: exit without freeing all modules.
    """

    def __init__(self, folder: Path, leave_quickly: bool = False) -> None:
        self._folder = folder
        self._leave_quickly = leave_quickly
        self._numbers = itertools.count()
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("starter.py"))],
            cwd=REPOSITORY,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        if self._answer() != "ready":
            raise RuntimeError("the starter of programs does not start")

    @property
    def memory(self) -> int:
        """Bytes of addresses that a program has when it starts."""
        return int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[0]) * resource.getpagesize()

    def __enter__(self) -> Starter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def start(
        self, module: str, arguments: Sequence[str], handicaps: Mapping[str, Sequence[object]] | None = None,
        limits: Mapping[str, int] | None = None,
    ) -> Program:  # fmt: skip
        """Start `python -m module arguments`.

        Args:
            module: with a `main` function.
            arguments: its command line.
            handicaps: functions of `tests/faults/handicaps.py` to call in it before it starts, with their arguments.
            limits: resource limits by their names, such as RLIMIT_FSIZE.
        """
        files = self._folder / f"program{next(self._numbers)}"
        files.mkdir(parents=True)
        request = {
            "module": module,
            "arguments": list(arguments),
            "handicaps": dict(handicaps or {}),
            "limits": dict(limits or {}),
            "leave_quickly": self._leave_quickly,
            **{name: str(files / name) for name in ("stdout", "stderr", "status")},
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return Program(int(self._answer()), files)

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()
