"""The user's mistakes: one exception type, and the one place that turns it into a line and an exit status."""

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

# What a machine can run out of or refuse; the user can mend these, a traceback would not help.
_MACHINE_ERRNOS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO, errno.ESTALE),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOLCK, errno.ETIMEDOUT),
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOENT, errno.ENXIO, errno.ENOTEMPTY),
}
# What torch says of a CPU and of a GPU, and Python of a thread.
_LACKS_MEMORY = ("can't allocate memory", "out of memory", "can't start new thread")
_NEED_LESS = "a smaller --bsz, --eval_context_bsz or --eval_memory_mb and fewer --num_workers need less"


class InputError(Exception):
    """What the user gave cannot be used. The message is one line: file, id, what was found, what was expected."""


class Stopped(Exception):
    """A signal asked the program to end, and everything worth keeping has been saved; `signal` is its number."""

    def __init__(self, signal: int, message: str) -> None:
        super().__init__(message)
        self.signal = signal


class _Terminated(SystemExit):
    """SIGTERM came, and nothing has to be saved."""


class Ended(Exception):
    """The program ends with this status because of another of its processes, which says why if the message does not."""

    def __init__(self, status: int, message: str = "") -> None:
        super().__init__(message)
        self.status = status


def summarize(problems: Sequence[str], shown: int = 5) -> str:
    """Join problems into one line: the first `shown` in full, the rest as a count."""
    rest = len(problems) - shown
    return "; ".join(problems[:shown]) + (f"; and {rest} more" if rest > 0 else "")


def shown(value: object, length: int = 60) -> str:
    """A value that a file holds as a message quotes it: text and numbers cut off, of anything else only its type.

    Lists may hold the same list twice, and that one another twice, and so on, so that writing them out never ends.

    >>> shown(3.5), shown("a long name", 6), shown([1, 2]), shown(10**100)
    ('3.5', "'a long...'", 'a list', 'a number of more than 60 digits')
    """
    if isinstance(value, str):
        return repr(value if len(value) <= length else f"{value[:length]}...")
    if isinstance(value, int) and abs(value) >= 10**length:
        return f"a number of more than {length} digits"
    return repr(value) if isinstance(value, bool | int | float | None) else f"a {type(value).__name__}"


def _end_at_once() -> NoReturn:
    """Leave one of torchrun's processes; a thread of its process group may abort it while Python takes itself down."""
    atexit._run_exitfuncs()
    sys.stderr.flush()
    os._exit(EXIT_DONE)


def run_command(main: Callable[[], object]) -> None:
    """Run `main` as the whole program and leave the process with the exit status of the command line contract.

    0 done, 2 the user's input is wrong (one line on stderr, no traceback), 130 interrupted, 143 terminated.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started the program
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    before, hook_before = signal.signal(signal.SIGTERM, _terminate), sys.unraisablehook
    sys.unraisablehook = _raise_again
    try:
        main()
        sys.stdout.flush()
        if "LOCAL_RANK" in os.environ:
            _end_at_once()
    except InputError as error:
        _leave(f"error: {error}", EXIT_INPUT)
    except Stopped as stop:
        _leave(str(stop), 128 + stop.signal)
    except Ended as end:
        _leave(str(end), end.status)
    except KeyboardInterrupt:
        _leave("interrupted", EXIT_INTERRUPTED)
    except _Terminated:
        _leave("terminated", 128 + signal.SIGTERM)
    except BrokenPipeError:  # the reader of our output has gone, as in `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_DONE)
    except OSError as error:
        if error.errno not in _MACHINE_ERRNOS:
            raise
        _leave(f"error: {error.filename or 'a file'}: {os.strerror(error.errno)}", EXIT_INPUT)
    except (MemoryError, RuntimeError) as error:
        if not _is_lack_of_memory(error):
            raise
        _leave(f"error: not enough memory ({str(error) or 'none is left'}); {_NEED_LESS}", EXIT_INPUT)
    finally:
        sys.unraisablehook = hook_before
        signal.signal(signal.SIGTERM, before)
        for number in (signal.SIGINT, signal.SIGTERM):  # who cannot wait for the exit need not be told where it was
            atexit.register(signal.signal, number, signal.SIG_DFL)


def _is_lack_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or any(words in str(error) for words in _LACKS_MEMORY)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise _Terminated(128 + number)


def _raise_again(ignored: "sys.UnraisableHookArgs") -> None:
    """A signal that came while Python ran a destructor, which ends no program, comes again a moment later."""
    number = {KeyboardInterrupt: signal.SIGINT, _Terminated: signal.SIGTERM}.get(ignored.exc_type)
    if number is None:
        sys.__unraisablehook__(ignored)
        return
    _thread.start_new_thread(_send_after_the_hook, (threading.get_ident(), number))  # a Thread waits for its start


def _send_after_the_hook(main: int, number: int) -> None:
    """Send a signal to the main thread once it has left `_raise_again`, where an exception is lost too."""
    time.sleep(0.01)
    while any(frame.f_code is _raise_again.__code__ for frame, _ in traceback.walk_stack(sys._current_frames()[main])):
        time.sleep(0.001)
    signal.pthread_kill(main, number)


def _leave(line: str, status: int) -> NoReturn:
    for stream, words in ((sys.stderr, " ".join(line.split()) + "\n" if line else ""), (sys.stdout, "")):
        try:
            stream.write(words)
            stream.flush()
        except OSError:  # a full disk or a reader that has gone, which must not change the status
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(status)
