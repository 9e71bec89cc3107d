"""The feature cache: killed while it is filled, damaged, on full or read-only disks, filled by several processes."""

from __future__ import annotations

import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np

from method.data.cache.rows_file import RowsFile
from tests.faults.damage import damage
from tests.faults.disks import _locked_folder, _small_disk
from tests.faults.programs import Lost, Outcome
from tests.faults.world import WAYS, Fault, World, digest, expect_same_result, expect_whole
from tests.helpers.small_dataset import SmallDataset

_SLOW = {"slow_reading": (0.01,), "slow_disk": (0.01,)}


def _uncached(world: World) -> SmallDataset:
    """The dataset without a cache."""
    data = world.copy_of_data()
    for folder in data.root.rglob("*.cache"):
        shutil.rmtree(folder)
    return data


def _tables(root: Path) -> dict[str, Path]:
    return {path.name: path for path in root.rglob("*.rows")}


def _expect_whole_cache(root: Path) -> None:
    """Lost when a table of the cache is not whole, or a half-written one is left."""
    for path in _tables(root).values():
        rows = RowsFile(path)
        for item_id, length in zip(rows.ids, rows.lengths_of(rows.ids), strict=True):
            if not rows.read_into(item_id, np.empty((length, rows.width), np.float32)):
                raise Lost(f"{path.name} is damaged at {item_id!r}")


def _expect_reference(world: World, run: Path, outcome: Outcome) -> None:
    outcome.expect_done()
    expect_whole(run)
    expect_same_result(run, world.reference)


def end_making(world: World, rng: random.Random) -> None:
    """Kill or stop a program that fills the cache; its tables are complete, and the next run leaves nothing else."""
    data, run = _uncached(world), world.new_run(world.fresh("results"))
    for _ in range(rng.randint(1, 3)):
        handicaps = rng.choice([_SLOW, {"slow_reading": (0.02,)}, {"slow_disk": (0.02,)}])
        program = world.start_training(run, WAYS["saving every epoch"], data, handicaps=handicaps)
        program.wait_for("caching")
        time.sleep(rng.uniform(0, 1.5))
        program.send(rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGINT, signal.SIGTERM]))
        program.wait().expect_no_traceback()
        program.expect_no_survivors()
        _expect_whole_cache(data.root)
        if (run / "metrics.json").exists():
            return
    _expect_reference(world, run, world.start_training(run, data=data).wait())
    _expect_whole_cache(data.root)
    if len(_tables(data.root)) != 3 or list(data.root.rglob("*.part")):
        raise Lost(f"left: {sorted(path.name for path in data.root.rglob('*.cache/*'))}")


def damaged(world: World, rng: random.Random) -> None:
    """A table is damaged: the result is unchanged, and the next run rebuilds the table."""
    data = _uncached(world)
    world.start_training(world.new_run(world.fresh("results")), data=data).wait().expect_done()
    before = {name: digest(path) for name, path in _tables(data.root).items()}
    path = _tables(data.root)[rng.choice(sorted(before))]
    what = damage(path, rng, [other for name, other in _tables(data.root).items() if name != path.name])
    for way in rng.sample(list(WAYS.values()), 2):
        run = world.new_run(world.fresh("results"))
        _expect_reference(world, run, world.start_training(run, way, data).wait())
    if {name: digest(path) for name, path in _tables(data.root).items()} != before:
        raise Lost(f"{what}: the rebuilt cache differs")


def full_disk(world: World, rng: random.Random) -> None:
    """The disk of the cache is full, or fills up while it is written: the run goes on without."""
    with _small_disk(world.fresh("disk"), rng.choice([4, 8, 12, 16, 24, 32])) as disk:
        run = world.new_run(world.fresh("results"))
        way = (*rng.choice(list(WAYS.values())), "--feature_cache", str(disk / "cache"))
        handicaps = rng.choice([{}, {"blind_to_free_room": ()}])
        outcome = world.start_training(run, way, handicaps=handicaps).wait()
        _expect_reference(world, run, outcome)
        _expect_whole_cache(disk)
        if len(_tables(disk)) < 3 and "no feature cache of" not in outcome.log:
            raise Lost(f"no warning about the cache: {outcome.show()}")
        if list(disk.rglob("*.part")):
            raise Lost("a partial table is left")


def read_only_dataset(world: World, rng: random.Random) -> None:
    """The folders of the dataset are read-only: the run continues without a cache, with one warning."""
    data, run = _uncached(world), world.new_run(world.fresh("results"))
    with _locked_folder(data.features.parent), _locked_folder(data.texts.parent):
        way = (*rng.choice(list(WAYS.values())), "--results_root", str(run.parents[2]))
        outcome = world.start_training(run, way, data).wait()
    _expect_reference(world, run, outcome)
    if outcome.log.count("no feature cache of i3d_feat, clip_feat, tokens") != 1:
        raise Lost(f"expected one line on the cache: {outcome.show()}")


def several_makers(world: World, rng: random.Random) -> None:
    """Programs that fill the same cache at the same time, one of which may be killed."""
    data, runs = _uncached(world), [world.new_run(world.fresh("results")) for _ in range(2)]
    killed = world.start_training(world.new_run(world.fresh("results")), data=data, handicaps=_SLOW)
    programs = [world.start_training(run, data=data, handicaps={"slow_reading": (0.002,)}) for run in runs]
    time.sleep(rng.uniform(0, 1.5))
    if rng.random() < 0.7:
        killed.kill()
    for run, program in zip(runs, programs, strict=True):
        _expect_reference(world, run, program.wait())
    killed.wait()
    _expect_whole_cache(data.root)
    if len(_tables(data.root)) != 3:
        raise Lost(f"tables: {sorted(_tables(data.root))}")


FAULTS = (
    Fault("kill -9 or a signal while filling the feature cache", end_making, 20),
    Fault("a damaged feature cache", damaged, 40),
    Fault("no space for the feature cache", full_disk, 12),
    Fault("a dataset in read-only folders", read_only_dataset, 4),
    Fault("several processes filling the feature cache", several_makers, 10),
)
