"""Starts the programs of the fault suite: real processes, forked from one with all imports done.

It reads requests from standard input, a line of JSON each, and answers each with the process id of the program. When a
program has ended, its exit status stands in the file that the request names (-9: killed by signal 9).
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import json
import os
import resource
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from method.evaluation.report import figures
from method.runtime.errors import run_command
from tests.faults import handicaps

# What the programs import, and what they, torch and the report import when they are first used.
PRELOADED = [*("method.train", "method.search", "utils.cache_negatives", "utils.convert_checkpoint"), "torch._dynamo"]
PRELOADED += ["method.ops.cpu"]  # whose kernels take most of a second to load
_PR_SET_PDEATHSIG = 1  # from <sys/prctl.h>


def main() -> None:
    """Serve requests until there are no more; in a child that becomes a program, run it and return."""
    for name in PRELOADED:
        importlib.import_module(name)
    # Pictures for TensorBoard would take half of the time of such short runs.
    figures.figures_for_tensorboard = lambda evaluation: {}
    gc.freeze()
    print("ready", flush=True)
    for line in sys.stdin:
        _reap()
        request = json.loads(line)
        if not _in_program(request["status"]):
            continue
        _become(request)
        program = importlib.import_module(request["module"])
        if request["leave_quickly"]:
            _run_and_leave_quickly(program.main)
        run_command(program.main)
        return


def _run_and_leave_quickly(program: Callable[[], object]) -> NoReturn:
    """Leave out the interpreter's last step, freeing all modules, which takes longer than such a short run."""
    status: object = 0
    try:
        run_command(program)
    except SystemExit as leaving:
        status = leaving.code
    except BaseException:
        traceback.print_exc()
        status = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(status if isinstance(status, int) else 1)


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def _in_program(status_path: str) -> bool:
    """Fork a parent that writes down the program's exit status, and the program; True in the latter."""
    read, write = os.pipe()
    if os.fork():
        os.close(write)
        with os.fdopen(read) as answer:
            print(answer.readline().strip(), flush=True)
        return False
    os.close(read)
    _end_with_the_parent()
    program = os.fork()
    if not program:
        os.close(write)
        _end_with_the_parent()
        return True
    os.write(write, f"{program}\n".encode())
    os.close(write)
    _, status = os.waitpid(program, 0)
    beside = Path(status_path + ".part")
    beside.write_text(str(os.waitstatus_to_exitcode(status)))
    beside.rename(status_path)
    os._exit(0)


def _end_with_the_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _become(request: dict[str, Any]) -> None:
    """A session of its own, so that its workers are found; output in files; limits, handicaps and a command line."""
    os.setsid()
    for number, path in enumerate((os.devnull, request["stdout"], request["stderr"])):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(descriptor, number)
        os.close(descriptor)
    for name, value in request["limits"].items():
        number = getattr(resource, name)
        resource.setrlimit(number, (value, resource.getrlimit(number)[1]))
    sys.argv = [request["module"], *request["arguments"]]
    for name, arguments in request["handicaps"].items():
        getattr(handicaps, name)(*arguments)


if __name__ == "__main__":
    main()
