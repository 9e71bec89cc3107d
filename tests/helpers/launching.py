"""Launchers started with a stub in place of Python that records the command lines."""

import os
import subprocess
from pathlib import Path

from tests.helpers.paths import REPOSITORY

# Prints its own path when asked for an interpreter, and records every other command line.
STUB = """#!/usr/bin/env bash
case "$1" in
  -c | */utils/environment.py) echo "$0" ;;
  *) printf '%s\\0' "$@" >> "$NOTES"; printf '\\n' >> "$NOTES" ;;
esac
exit "${STUB_STATUS:-0}"
"""


def write_stub(folder: Path) -> Path:
    """Write the stub to a folder of its own in `folder`."""
    path = folder / "stub" / "python"
    path.parent.mkdir()
    path.write_text(STUB)
    path.chmod(0o755)
    return path


def launch(
    stub: Path, launcher: str | Path, *arguments: str, shell: str = "bash", **environment: str
) -> list[list[str]]:
    """The command lines that a launcher runs, started from another folder."""
    notes = stub.parent / "notes"
    notes.unlink(missing_ok=True)
    subprocess.run(
        [shell, REPOSITORY / launcher, *arguments],
        cwd=stub.parent,
        env={**os.environ, "PYTHON": str(stub), "NOTES": str(notes), **environment},
        check=True,
    )
    return [line.split("\0")[:-1] for line in notes.read_text().splitlines()]
