"""All kinds of faults, and making one happen again and again."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field

from tests.faults import (
    damage,
    disks,
    feature_cache,
    forged_checkpoints,
    inputs,
    killing,
    odd_files,
    pickle_bombs,
    runs,
    stopping,
)
from tests.faults.programs import Lost
from tests.faults.world import Fault, Skipped, World

FAULTS: tuple[Fault, ...] = (
    *(*killing.FAULTS, *stopping.FAULTS, *disks.FAULTS, *pickle_bombs.FAULTS, *forged_checkpoints.FAULTS),
    *(*damage.FAULTS, *odd_files.FAULTS, *runs.FAULTS, *inputs.FAULTS, *feature_cache.FAULTS),
)


@dataclass
class Result:
    """What came of a fault's tries: how many, how many did no harm, what each of the others did, and a remark."""

    tries: int = 0
    survived: int = 0
    lost: list[str] = field(default_factory=list)
    note: str = ""


def make_happen(fault: Fault, world: World, tries: int, seed: int) -> Result:
    """Make a fault happen; each try is drawn from the seed, the fault's name and its own number."""
    result, started = Result(), time.monotonic()
    for number in range(tries):
        draw = f"{seed} {fault.name} {number}"
        try:
            fault.attempt(world, random.Random(draw))
            result.survived += 1
        except Skipped as reason:
            result.note = f"skipped: {reason}"
            return result
        except Lost as harm:
            result.lost.append(f"{fault.name}, try {number} of seed {seed}: {harm}")
        result.tries += 1
    result.note = f"{time.monotonic() - started:.0f} s"
    return result
