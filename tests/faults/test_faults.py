"""One attempt of every fault; `python tests/faults/run_all.py` makes many."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import pickle_bombs
from tests.faults.faults import FAULTS, make_happen
from tests.faults.programs import Starter
from tests.faults.world import Fault, World


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("faults")
    with Starter(folder / "programs", leave_quickly=True) as starter:
        yield World(folder / "world", starter)


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name for fault in FAULTS])
def test_nothing_is_lost(world: World, fault: Fault) -> None:
    result = make_happen(fault, world, tries=1, seed=0)
    assert not result.lost, "\n".join(result.lost)
    if result.survived == 0:
        pytest.skip(result.note)


def test_the_bombs_are_live(world: World) -> None:
    """Python's own pickle executes what read_checkpoint refuses."""
    folder: Path = world.fresh("bombs")
    folder.mkdir()
    world.starter.start("tests.faults.pickle_bombs", [str(folder)]).wait().expect_done()
    assert len(list(folder.iterdir())) == len(pickle_bombs.BOMBS) * len(pickle_bombs.WAYS_TO_CALL)
