"""All faults, and repeated attempts of one."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field

from tests.faults import (
    damage,
    disks,
    feature_cache,
    killing,
    odd_files,
    pickle_bombs,
    runs,
    stopping,
)
from tests.faults.programs import Lost
from tests.faults.world import Fault, Skipped, World

FAULTS: tuple[Fault, ...] = (
    *(
        *killing.FAULTS,
        *stopping.FAULTS,
        *disks.FAULTS,
        *pickle_bombs.FAULTS,
    ),
    *(*damage.FAULTS, *odd_files.FAULTS, *runs.FAULTS, *feature_cache.FAULTS),
)


@dataclass
class Result:
    """Attempts of a fault: how many, how many survived, what the others lost, and a remark."""

    tries: int = 0
    survived: int = 0
    lost: list[str] = field(default_factory=list)
    note: str = ""


def make_happen(fault: Fault, world: World, tries: int, seed: int) -> Result:
    """Attempt a fault; each attempt is seeded by the seed, the name of the fault and its number."""
    result, started = Result(), time.monotonic()
    for number in range(tries):
        draw = f"{seed} {fault.name} {number}"
        try:
            fault.attempt(world, random.Random(draw))
            result.survived += 1
        except Skipped as reason:
            result.note = f"skipped: {reason}"
            return result
        except Lost as loss:
            result.lost.append(f"{fault.name}, try {number} of seed {seed}: {loss}")
        result.tries += 1
    result.note = f"{time.monotonic() - started:.0f} s"
    return result
