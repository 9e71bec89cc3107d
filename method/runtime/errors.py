"""InputError for user mistakes, and `run_command`, which turns exceptions into one line and an exit status."""

import _thread
import atexit
import errno
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from types import FrameType
from typing import NoReturn

EXIT_DONE = 0
EXIT_INPUT = 2
EXIT_INTERRUPTED = 130

# Errors of the operating system that the user can fix; a traceback would not help.
_MACHINE_ERRNOS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EFBIG,
    errno.EIO,
    errno.ESTALE,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.ENOLCK,
    errno.ETIMEDOUT,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.ENOENT,
    errno.ENXIO,
    errno.ENOTEMPTY,
    errno.ENOSYS,
    errno.EOPNOTSUPP,
    errno.EXDEV,
    errno.ENODEV,
}
# Messages of torch on a CPU, of torch on a GPU, and of Python's threads.
_OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "can't start new thread")
_MEMORY_ADVICE = "reduce --bsz, --eval_context_bsz, --eval_memory_mb or --num_workers"


class InputError(Exception):
    """A mistake in the user's input. The message is one line: file, id, what was found, what was expected."""


class Stopped(Exception):
    """The run was stopped by a signal, `signal`, after its state was saved."""

    def __init__(self, signal: int, message: str) -> None:
        super().__init__(message)
        self.signal = signal


class _Terminated(SystemExit):
    """SIGTERM outside a run, with nothing to save."""


class PeerFailed(Exception):
    """Exit with `status` because another rank failed, which reports the reason unless the message does."""

    def __init__(self, status: int, message: str = "") -> None:
        super().__init__(message)
        self.status = status


def summarize(problems: Sequence[str], shown: int = 5) -> str:
    """Join problems into one line: the first `shown` in full, the others counted."""
    rest = len(problems) - shown
    return "; ".join(problems[:shown]) + (f"; and {rest} more" if rest > 0 else "")


def shown(value: object, length: int = 60) -> str:
    """A value read from a file, quoted for a message: long text and numbers are cut, containers shown by type only.

    A hostile file may nest containers so that printing them takes exponential time.

    >>> shown(3.5), shown("a long name", 6), shown([1, 2]), shown(10**100)
    ('3.5', "'a long...'", 'a list', 'a number of more than 60 digits')
    """
    if isinstance(value, str):
        return repr(value if len(value) <= length else f"{value[:length]}...")
    if isinstance(value, int) and abs(value) >= 10**length:
        return f"a number of more than {length} digits"
    return repr(value) if isinstance(value, bool | int | float | None) else f"a {type(value).__name__}"


def _exit(status: int) -> NoReturn:
    """Exit; a process of torchrun does so without interpreter shutdown, during which a thread of gloo may abort it."""
    if "LOCAL_RANK" not in os.environ:
        sys.exit(status)
    for number in (signal.SIGINT, signal.SIGTERM):  # torchrun sends them again, and the status must stay what it is
        signal.signal(number, signal.SIG_IGN)
    atexit._run_exitfuncs()
    sys.stderr.flush()
    os._exit(status)


def run_command(main: Callable[[], object]) -> None:
    """Run `main` as the whole program and exit with the documented status.

    0 done, 2 wrong user input (one line on stderr, no traceback), 130 interrupted, 143 terminated.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the parent process
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    before, hook_before = signal.signal(signal.SIGTERM, _terminate), sys.unraisablehook
    sys.unraisablehook = _raise_again
    try:
        main()
        sys.stdout.flush()
        if "LOCAL_RANK" in os.environ:
            _exit(EXIT_DONE)
    except InputError as error:
        _leave(f"error: {error}", EXIT_INPUT)
    except Stopped as stop:
        _leave(str(stop), 128 + stop.signal)
    except PeerFailed as end:
        _leave(str(end), end.status)
    except KeyboardInterrupt:
        _leave("interrupted", EXIT_INTERRUPTED)
    except _Terminated:
        _leave("terminated", 128 + signal.SIGTERM)
    except BrokenPipeError:  # the reader of the pipe has closed it, as in `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _exit(EXIT_DONE)
    except OSError as error:
        if error.errno not in _MACHINE_ERRNOS:
            raise
        _leave(f"error: {error.filename or 'standard output or a file'}: {os.strerror(error.errno)}", EXIT_INPUT)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        _leave(f"error: out of memory ({str(error) or 'none is left'}); {_MEMORY_ADVICE}", EXIT_INPUT)
    finally:
        sys.unraisablehook = hook_before
        signal.signal(signal.SIGTERM, before)
        for number in (signal.SIGINT, signal.SIGTERM):  # a second signal during shutdown needs no traceback
            atexit.register(signal.signal, number, signal.SIG_DFL)


def expect_standard_output() -> None:
    """InputError if standard output is closed, for a program whose answers go nowhere else."""
    if sys.stdout is None or getattr(sys.stdout, "name", None) == os.devnull:  # what `run_command` opens in its place
        raise InputError("standard output is closed, and the answers would go there")


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or any(message in str(error) for message in _OUT_OF_MEMORY)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise _Terminated(128 + number)


def _raise_again(ignored: "sys.UnraisableHookArgs") -> None:
    """Resend a signal whose exception was raised inside a destructor, where Python discards it."""
    number = {KeyboardInterrupt: signal.SIGINT, _Terminated: signal.SIGTERM}.get(ignored.exc_type)
    if number is None:
        sys.__unraisablehook__(ignored)
        return
    _thread.start_new_thread(_send_after_the_hook, (threading.get_ident(), number))  # Thread.start would block


def _send_after_the_hook(main: int, number: int) -> None:
    """Send the signal after the main thread has left `_raise_again`, where an exception would be lost too."""
    time.sleep(0.01)
    while any(frame.f_code is _raise_again.__code__ for frame, _ in traceback.walk_stack(sys._current_frames()[main])):
        time.sleep(0.001)
    signal.pthread_kill(main, number)


def _leave(line: str, status: int) -> NoReturn:
    for stream, text in ((sys.stderr, " ".join(line.split()) + "\n" if line else ""), (sys.stdout, "")):
        try:
            stream.write(text)
            stream.flush()
        except OSError:  # a full disk or a closed pipe must not change the exit status
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    _exit(status)
