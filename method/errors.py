"""The user's mistakes: one exception type, and the one place that turns it into a line and an exit status."""

import atexit
import errno
import os
import signal
import sys
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
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM),
}


class InputError(Exception):
    """What the user gave cannot be used. The message is one line: file, id, what was found, what was expected."""


class Stopped(Exception):
    """A signal asked the program to end, and everything worth keeping has been saved; `signal` is its number."""

    def __init__(self, signal: int, message: str) -> None:
        super().__init__(message)
        self.signal = signal


def summarize(problems: Sequence[str], shown: int = 5) -> str:
    """Join problems into one line: the first `shown` in full, the rest as a count."""
    rest = len(problems) - shown
    return "; ".join(problems[:shown]) + (f"; and {rest} more" if rest > 0 else "")


def run_command(main: Callable[[], object]) -> None:
    """Run `main` as the whole program and leave the process with the exit status of the command line contract.

    0 done, 2 the user's input is wrong (one line on stderr, no traceback), 130 interrupted, 143 terminated.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started the program
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        main()
        sys.stdout.flush()
    except InputError as error:
        _leave(f"error: {error}", EXIT_INPUT)
    except Stopped as stop:
        _leave(str(stop), 128 + stop.signal)
    except KeyboardInterrupt:
        _leave("interrupted", EXIT_INTERRUPTED)
    except BrokenPipeError:  # the reader of our output has gone, as in `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_DONE)
    except OSError as error:
        if error.errno not in _MACHINE_ERRNOS:
            raise
        _leave(f"error: {error.filename or 'a file'}: {os.strerror(error.errno)}", EXIT_INPUT)
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    os.write(2, b"terminated\n")
    sys.exit(128 + number)


def _leave(line: str, status: int) -> NoReturn:
    for number in (signal.SIGINT, signal.SIGTERM):  # who cannot wait for the exit need not be told where it was
        atexit.register(signal.signal, number, signal.SIG_DFL)
    for stream, words in ((sys.stderr, " ".join(line.split()) + "\n"), (sys.stdout, "")):
        try:
            stream.write(words)
            stream.flush()
        except OSError:  # a full disk or a reader that has gone, which must not change the status
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(status)
