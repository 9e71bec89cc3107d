"""Become a command that gets SIGTERM when the process that started it ends, even if that one is killed. Linux only.

    python utils/runs/with_parent.py PARENT COMMAND ...

PARENT is the process id of the starter. On other systems the command runs as it would without this program.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # of linux/prctl.h; outlives the exec below


def main() -> None:
    """Become the command, unless the parent has ended already."""
    parent, *command = sys.argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() == int(parent):
        os.execv(command[0], command)


if __name__ == "__main__":
    main()
