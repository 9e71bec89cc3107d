"""Make every fault happen, many times, and print what survived.

    python tests/faults/run_all.py
    python tests/faults/run_all.py --only 'kill -9' --tries 100 --seed 3

Exit status 1 when something was lost.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from tests.faults.faults import FAULTS, make_happen
from tests.faults.programs import Starter
from tests.faults.world import World

_ROW = "{:<44} {:>5} {:>8} {:>5}  {}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the suite; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, help="tries of each fault (default: as many as each needs)")
    parser.add_argument("--only", default="", help="faults whose names contain this")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments and kinds of the faults")
    parser.add_argument("--keep", action="store_true", help="keep the files, and say where they are")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # and clean up
    folder = Path(tempfile.mkdtemp(prefix="faults"))
    lost: list[str] = []
    print(_ROW.format("fault", "tries", "survived", "lost", ""), flush=True)
    try:
        with Starter(folder / "programs") as starter:
            world = World(folder / "world", starter)
            for fault in FAULTS:
                if options.only in fault.name:
                    result = make_happen(fault, world, options.tries or fault.tries, options.seed)
                    counts = (result.tries, result.survived, len(result.lost))
                    print(_ROW.format(fault.name, *counts, result.note), flush=True)
                    lost += result.lost
    finally:
        for line in lost:
            print(f"lost: {line}")
        if options.keep:
            print(f"files in {folder}")
        else:
            shutil.rmtree(folder)
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
