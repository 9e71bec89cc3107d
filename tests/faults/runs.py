"""Two processes in one folder, resuming with other data, replaced checkpoints, and NaN in the weights."""

from __future__ import annotations

import contextlib
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import h5py

from method.runtime.files import read_json
from tests.faults.programs import Lost
from tests.faults.world import CPU, WAYS, Fault, World, digest, expect_whole
from tests.helpers.small_dataset import SmallDataset


def two_processes(world: World, rng: random.Random) -> None:
    """A second process in the folder of a run is refused; the first completes undisturbed."""
    run = world.new_run()
    first = world.start_training(run, WAYS["with workers"], handicaps={"slow_steps": (0.1,)})
    first.wait_for("epoch 0" if rng.random() < 0.5 else "CPU threads")
    with contextlib.ExitStack() as stack:
        stack.callback(first.wait)
        again = world.data.flags("--description", run.name, "--n_epoch", "1")
        commands = [["--resume", str(run), *CPU], again, [*again, "--resume"]]
        second = world.starter.start("method.train", rng.choice(commands)).wait()
    if first.wait().status or second.status == 0:
        raise Lost(f"two processes wrote to one run: {second.show()}")
    second.expect_refused("another process", "holds an unfinished run", "must keep its options", "is finished")
    world.finish(run)


def lock_of_a_killed_process(world: World, rng: random.Random) -> None:
    """A killed process keeps no lock, not even while its workers exit."""
    run = world.new_run()
    first = world.start_training(run, WAYS["with workers"], handicaps={"slow_steps": (0.1,)})
    first.wait_for("epoch 0" if rng.random() < 0.5 else "CPU threads")
    first.send(signal.SIGKILL)
    first.wait()
    world.finish(run, WAYS["with workers"])
    first.expect_no_survivors()


def changed_dataset(world: World, rng: random.Random) -> None:
    """Features or captions are replaced before a run is resumed: refused; with the old files it resumes."""
    data, run = world.copy_of_data(), world.new_run(world.fresh("results"))
    first = world.start_training(run, WAYS["saving every step"], data, handicaps={"slow_steps": (0.2,)})
    first.wait_for("epoch 0")
    first.send(signal.SIGTERM)
    first.wait()
    path, change = rng.choice([
        (data.features, lambda: _replace(data.features, lambda rows: rows[:, :5])),
        (data.texts, lambda: _replace(data.texts, lambda rows: rows[:, :7])),
        (data.features, lambda: _replace(data.features, lambda rows: rows[:-1])),
        (data.features, lambda: data.features.write_bytes(data.texts.read_bytes())),
        (data.train_txt, lambda: _change_captions(data)),
        (data.train_txt, lambda: data.train_txt.write_bytes(data.test_txt.read_bytes())),
    ])  # fmt: skip
    before = path.read_bytes()
    change()
    world.start_training(run).wait().expect_refused(path, run / "last.ckpt")
    expect_whole(run)
    path.write_bytes(before)
    world.finish(run)


def _replace(path: Path, change: Any) -> None:
    with h5py.File(path, "r+") as file:
        names: list[str] = []
        file.visititems(lambda name, value: names.append(name) if isinstance(value, h5py.Dataset) else None)
        for name in names:
            rows = change(file[name][()])
            del file[name]
            file[name] = rows


def _change_captions(data: SmallDataset) -> None:
    lines = data.train_txt.read_text().splitlines()
    data.train_txt.write_text("\n".join(lines[3:]))


def replaced_checkpoint(world: World, rng: random.Random) -> None:
    """A checkpoint is replaced while it is evaluated: the metrics belong to the file whose hash they record."""
    path, run = world.fresh("model.ckpt"), world.new_run()
    shutil.copy(world.reference / "model.ckpt", path)
    other = path.with_name("other.ckpt")
    shutil.copy(world.other_run / "model.ckpt", other)
    evaluated = world.data.flags("--eval_ckpt", str(path), "--description", run.name)
    program = world.starter.start("method.evaluate", evaluated, {"slow_reading": (0.005,), "slow_checkpoints": (0.05,)})
    time.sleep(rng.uniform(0, 0.5))
    other.replace(path)
    program.wait().expect_done()
    found = read_json(run / "metrics.json")
    source = {digest(folder / "model.ckpt"): folder for folder in (world.reference, world.other_run)}
    expected = read_json(source[found["checkpoint"]["sha256"]] / "metrics.json")
    if found["fused"] != expected["fused"] or found["epoch"] != expected["epoch"]:
        raise Lost("metrics.json names the hash of another checkpoint than was evaluated")


def nan_in_weights(world: World, rng: random.Random) -> None:
    """A weight becomes NaN: the run stops, keeps the state before that, and resumes from it."""
    run = world.new_run()
    broken = {"broken_update": (rng.randrange(9),)}
    outcome = world.start_training(run, rng.choice(list(WAYS.values())), handicaps=broken).wait()
    outcome.expect_refused("not finite", "NaN")
    expect_whole(run)
    world.finish(run, WAYS["saving every step"])


FAULTS = (
    Fault("two processes in one folder", two_processes, 8),
    Fault("the lock of a killed process", lock_of_a_killed_process, 8),
    Fault("a run with other captions or features", changed_dataset, 12),
    Fault("a checkpoint replaced while evaluated", replaced_checkpoint, 15),
    Fault("NaN in the weights", nan_in_weights, 12),
)
