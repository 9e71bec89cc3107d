"""Exit status and the one line that the user sees."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

from method.runtime.errors import InputError, Stopped, run_command, shown, summarize
from tests.helpers.paths import REPOSITORY


def raising(error: BaseException) -> Callable[[], None]:
    def main() -> None:
        raise error

    return main


@pytest.mark.parametrize(("error", "status", "line"), [
    (InputError("a.txt: line 3: wrong"), 2, "error: a.txt: line 3: wrong"),
    (InputError("one\ntwo\n  three"), 2, "error: one two three"),
    (Stopped(signal.SIGINT, "stopped and saved"), 130, "stopped and saved"),
    (Stopped(signal.SIGTERM, "stopped and saved"), 143, "stopped and saved"),
    (KeyboardInterrupt(), 130, "interrupted"),
    (OSError(errno.ENOSPC, "x", "/big/file"), 2, "error: /big/file: No space left on device"),
    (OSError(errno.ENOSPC, "x"), 2, "error: standard output or a file: No space left on device"),
    (PermissionError(errno.EACCES, "x", "/etc/file"), 2, "error: /etc/file: Permission denied"),
    (OSError(errno.EROFS, "x", "/ro/file"), 2, "error: /ro/file: Read-only file system"),
    (FileNotFoundError(errno.ENOENT, "x", "/no/file"), 2, "error: /no/file: No such file or directory"),
    (MemoryError(), 2, "error: out of memory (none is left); reduce --bsz, --eval_context_bsz, "
        "--eval_memory_mb or --num_workers"),
    (RuntimeError("CUDA out of memory."), 2,
        "error: out of memory (CUDA out of memory.); reduce --bsz, --eval_context_bsz, "
        "--eval_memory_mb or --num_workers"),
])  # fmt: skip
def test_status_and_line(error: BaseException, status: int, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        run_command(raising(error))
    assert left.value.code == status
    captured = capsys.readouterr()
    assert captured.err == line + "\n"
    assert not captured.out


@pytest.mark.parametrize(
    "error", [ValueError("a bug"), KeyError("a bug"), RuntimeError("a bug"), OSError(errno.EBADF, "a bug")]
)
def test_programming_mistakes_are_not_hidden(error: Exception) -> None:
    with pytest.raises(type(error), match="a bug"):
        run_command(raising(error))


def test_a_reader_that_has_gone_is_no_error() -> None:
    """As in `... | head -1`."""
    code = (
        "from method.runtime.errors import run_command; run_command(lambda: [print('x' * 1000) for _ in range(1000)])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(30) == 0


@pytest.mark.parametrize(("outcome", "status"), [
    ("None", 0), ("InputError('wrong')", 2), ("Stopped(15, 'saved')", 143), ("PeerFailed(1)", 1),
    ("KeyboardInterrupt()", 130), ("BrokenPipeError()", 0),
])  # fmt: skip
def test_processes_of_torchrun_exit_without_interpreter_shutdown(outcome: str, status: int) -> None:
    """A thread of gloo that still runs then may abort the process."""
    code = f"""
import atexit, os, sys
from method.runtime.errors import InputError, PeerFailed, Stopped, run_command

class Thread:
    def __del__(self):
        os.abort()

def main():
    if (outcome := {outcome}) is not None:
        raise outcome

still_runs = Thread()
atexit.register(os.write, 1, b"registered functions ran")
run_command(main)"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, env={**os.environ, "LOCAL_RANK": "0"},
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == status
    if "BrokenPipe" not in outcome:  # which closes standard output
        assert done.stdout == b"registered functions ran"


def test_a_closed_standard_output_is_an_error_where_answers_go_there() -> None:
    code = "from method.runtime.errors import expect_standard_output, run_command; run_command(expect_standard_output)"
    for redirection, status, said in (
        (">&-", 2, "error: standard output is closed, and the answers would go there\n"),
        ("> /dev/null", 0, ""),
    ):
        done = subprocess.run(
            f'exec "{sys.executable}" -c "{code}" {redirection}',
            shell=True, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (status, said)


def test_summaries_show_the_first_and_count_the_rest() -> None:
    assert summarize(["a"]) == "a"
    assert summarize(list("abcde")) == "a; b; c; d; e"
    assert summarize(list("abcdefg")) == "a; b; c; d; e; and 2 more"
    assert summarize(list("abc"), shown=1) == "a; and 2 more"


def test_values_are_shown_in_a_few_words() -> None:
    endless: list[object] = []
    endless.append(endless)
    shared: list[object] = [1]
    for _ in range(60):
        shared = [shared, shared]
    values = ("x" * 10**6, 10**5000, -(10**61), endless, shared, {1: shared}, None, True, float("nan"), 384)
    assert all(len(shown(value)) < 70 for value in values)
    assert shown("384") == "'384'"
    assert shown(384) == "384"
    assert shown(shared) == "a list"


SIGNAL_IN_A_CALLBACK = """
import os, signal, sys, time, weakref
from method.runtime.errors import run_command

class Thing:
    pass

def leave(_):
    os.kill(os.getpid(), int(sys.argv[1]))
    for _ in range(1000):
        pass

def main():
    thing = Thing()
    kept = weakref.ref(thing, leave)
    del thing
    time.sleep(30)
    print("not reached")

run_command(main)
"""


@pytest.mark.parametrize(("number", "line"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")])
def test_a_signal_while_python_cleans_up_is_not_lost(number: signal.Signals, line: str) -> None:
    run = [sys.executable, "-c", SIGNAL_IN_A_CALLBACK, str(int(number))]
    done = subprocess.run(run, cwd=REPOSITORY, capture_output=True, text=True, timeout=25)
    assert (done.returncode, done.stderr, done.stdout) == (128 + number, line + "\n", "")


def test_a_signal_waits_for_the_hook_that_sends_it_again() -> None:
    slow = """
import time
from method.runtime import errors

start = errors._thread.start_new_thread

def start_slowly(*thread):
    start(*thread)
    for _ in range(30):
        time.sleep(0.01)

errors._thread.start_new_thread = start_slowly
"""
    run = [sys.executable, "-c", slow + SIGNAL_IN_A_CALLBACK, str(int(signal.SIGTERM))]
    done = subprocess.run(run, cwd=REPOSITORY, capture_output=True, text=True, timeout=25)
    assert (done.returncode, done.stderr, done.stdout) == (128 + signal.SIGTERM, "terminated\n", "")


def test_other_mistakes_while_python_cleans_up_are_shown() -> None:
    program = SIGNAL_IN_A_CALLBACK.replace("os.kill(os.getpid(), int(sys.argv[1]))", "raise ValueError('a bug')")
    program = program.replace("time.sleep(30)", "pass")
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0
    assert "ValueError: a bug" in done.stderr
