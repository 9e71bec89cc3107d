"""Malformed files, and numbers that are none, in the features or in the weights."""

from __future__ import annotations

import itertools
import random

import h5py
import numpy as np

from tests.config.test_bad_input import BEFORE_THE_FIRST_STEP
from tests.faults.programs import Lost
from tests.faults.world import WAYS, Fault, World, expect_whole

_WAY = WAYS["saving every step"]
_rows = itertools.cycle(BEFORE_THE_FIRST_STEP)


def malformed(world: World, rng: random.Random) -> None:
    """The next row of the table of malformed inputs: a line that names the file, before anything is written."""
    data, row = world.copy_of_data(), next(_rows)
    BEFORE_THE_FIRST_STEP[row][0](data)
    flags = data.flags("--n_epoch", "1", "--num_workers", rng.choice(["0", "2"]))
    outcome = world.starter.start("method.train", flags).wait()
    try:
        outcome.expect_refused(data.root)
    except Lost as harm:
        raise Lost(f"{row}: {harm}") from harm
    if data.results.exists():
        raise Lost(f"{row}: found only after the run had begun")


def no_number_in_features(world: World, rng: random.Random) -> None:
    """NaN or infinity in one row, found on the way: named, and with the row mended the run goes on."""
    data, run = world.copy_of_data(), world.new_run(world.fresh("results"))
    path = rng.choice([data.features, data.texts])
    before = path.read_bytes()
    with h5py.File(path, "r+") as file:
        name = rng.choice(sorted(file))
        if path == data.features:
            name += rng.choice(["/i3d_feat", "/clip_feat"])
        file[name][rng.randrange(len(file[name])), 0] = rng.choice([np.nan, np.inf, -np.inf])
    way = (*_WAY, "--num_workers", rng.choice(["0", "2"]))
    world.start_training(run, way, data).wait().expect_refused(f"{path}: {name!r}")
    expect_whole(run)
    path.write_bytes(before)
    world.finish(run)


def no_number_in_weights(world: World, rng: random.Random) -> None:
    """A weight becomes NaN: the run stops, the state before that is kept, and a sound program goes on from it."""
    run = world.new_run()
    broken = {"broken_update": (rng.randrange(9),)}
    world.start_training(run, rng.choice(list(WAYS.values())), handicaps=broken).wait().expect_refused(
        "not finite", "NaN"
    )
    expect_whole(run)
    world.finish(run, _WAY)


FAULTS = (
    Fault("malformed input", malformed, len(BEFORE_THE_FIRST_STEP), 4),
    Fault("NaN or infinity in the features", no_number_in_features, 15, 1),
    Fault("NaN in the weights", no_number_in_weights, 12, 1),
)
