"""kill -9 at random moments: trainings, evaluations, caches, indexes, conversions and data workers."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path

from method.negatives.cache import read_manifest
from method.runtime.files import read_json
from tests.faults.programs import Lost, Program
from tests.faults.world import (
    CPU,
    EPOCHS,
    WAYS,
    Fault,
    World,
    answer,
    digest,
    expect_no_parts,
    expect_same_metrics,
    expect_same_result,
    expect_whole,
)

_MAX_KILLS = 3
_SLOW_DISK = (0.001,)


def kill_training(world: World, rng: random.Random) -> None:
    """Kill a training, and often those that resume it too."""
    name = rng.choice(list(WAYS))
    _kill_and_finish(world, rng, name, world.durations[name])


def kill_while_saving(world: World, rng: random.Random) -> None:
    """Kill a training that spends most of its time writing."""
    slow = {"slow_disk": _SLOW_DISK}
    _kill_and_finish(world, rng, "saving every step", 2 * world.durations["saving every step"], slow)


def kill_between_operations(world: World, rng: random.Random) -> None:
    """Kill a training just before one of its changes to a folder or flushes of a file."""
    run = world.new_run()
    for _ in range(rng.randint(1, _MAX_KILLS)):
        program = world.start_training(run, WAYS["saving every step"], handicaps={"die_at": (rng.randrange(120),)})
        outcome = program.wait()
        expect_whole(run)
        if outcome.status == 0:
            break
    world.finish(run, WAYS["saving every step"])


def _kill_and_finish(
    world: World, rng: random.Random, name: str, seconds: float, handicaps: dict[str, tuple[float]] | None = None
) -> None:
    run = world.new_run()
    for _ in range(rng.randint(1, _MAX_KILLS)):
        program = world.start_training(run, WAYS[name], handicaps=handicaps)
        _kill_within(program, rng, seconds)
        expect_whole(run)
        if (run / "metrics.json").exists():
            break
    world.finish(run, WAYS[name])


def _kill_within(program: Program, rng: random.Random, seconds: float) -> None:
    end = time.monotonic() + rng.uniform(0, seconds)
    while program.is_running and time.monotonic() < end:
        time.sleep(0.002)
    program.kill()


def kill_evaluation(world: World, rng: random.Random) -> None:
    """Kill an evaluation; the same command then evaluates, and the checkpoint is as it was."""
    checkpoint = world.reference / "model.ckpt"
    before = digest(checkpoint)
    run = world.new_run()
    module = rng.choice(["method.train", "method.evaluate"])
    arguments = world.data.flags("--eval_ckpt", str(checkpoint), "--description", run.name, "--save_scores")
    arguments += ["--only_eval"] if module == "method.train" else []
    arguments += rng.choice([[], ["--num_workers", "2"]])
    for _ in range(rng.randint(1, _MAX_KILLS)):
        program = world.starter.start(module, arguments, {"slow_disk": _SLOW_DISK, "slow_reading": (0.003,)})
        _kill_within(program, rng, 0.8)
        expect_whole(run)
        if (run / "metrics.json").exists():
            break
    else:
        world.starter.start(module, arguments).wait().expect_done()
    expect_whole(run)
    expect_same_metrics(run, world.reference)
    if digest(checkpoint) != before:
        raise Lost("the evaluated checkpoint has changed")


def kill_caching(world: World, rng: random.Random) -> None:
    """Kill cache_negatives; training refuses the incomplete cache, and the same command completes it."""
    folder = world.fresh("cache")
    for _ in range(rng.randint(1, _MAX_KILLS)):
        program = world.start_caching(folder, slow_disk=(0.03,))
        _kill_within(program, rng, 1.5)
    if not (folder / "cache.json").exists() or not read_manifest(folder, {}).complete:
        world.start_with_cache(folder).wait().expect_refused(folder)
    world.start_caching(folder).wait().expect_done()
    if _files(folder) != _files(world.cache):
        raise Lost("a cache that was killed and continued differs from one that was not")


def kill_indexing(world: World, rng: random.Random) -> None:
    """Kill a search while it builds its index; the same command builds it and gives the same results."""
    checkpoint = world.fresh("model.ckpt")
    shutil.copy(world.reference / "model.ckpt", checkpoint)
    search = ["--eval_ckpt", str(checkpoint), "--query_id", "E00#enc#0", "--json", *CPU]
    for _ in range(rng.randint(1, _MAX_KILLS)):
        program = world.starter.start("method.search", search, {"slow_disk": (0.05,), "slow_reading": (0.005,)})
        _kill_within(program, rng, 0.8)
    outcome = world.starter.start("method.search", search).wait()
    outcome.expect_done()
    if answer(outcome) != world.answer:
        raise Lost("a search that was killed and repeated gives other results")
    expect_no_parts(checkpoint.parent)


def kill_converting(world: World, rng: random.Random) -> None:
    """Kill the conversion of a checkpoint; its output is complete or missing."""
    target = world.fresh("published.ckpt")
    convert = [str(world.reference / "model.ckpt"), str(target)]
    program = world.starter.start("utils.convert_checkpoint", convert, {"slow_disk": (0.005,)})
    _kill_within(program, rng, 0.5)
    expect_whole(target.parent)
    if not target.exists():
        world.starter.start("utils.convert_checkpoint", convert).wait().expect_done()
    evaluated = world.data.flags("--eval_ckpt", str(target), "--description", (run := world.new_run()).name)
    world.starter.start("method.evaluate", evaluated).wait().expect_done()
    if read_json(run / "metrics.json")["checkpoint"]["sha256"] != digest(target):
        raise Lost("metrics.json names the hash of another checkpoint")


def kill_extension(world: World, rng: random.Random) -> None:
    """Kill a finished run that is extended; its earlier results are kept, and not mistaken for later ones."""
    run = world.new_run()
    shutil.copytree(world.reference, run)
    before = {name: digest(run / name) for name in ("metrics.json", "model.ckpt")}
    for _ in range(rng.randint(1, _MAX_KILLS)):
        program = world.start_extension(run, handicaps={"slow_disk": (0.003,), "slow_steps": (0.02,)})
        _kill_within(program, rng, 1.2)
        expect_whole(run)
        if (run / "metrics.json").exists() and digest(run / "metrics.json") == before["metrics.json"]:
            if digest(run / "model.ckpt") != before["model.ckpt"]:
                raise Lost("the metrics are those of an earlier checkpoint")
        elif {name: digest(run / f"n_epoch_{EPOCHS}" / name) for name in before} != before:
            raise Lost("the results of the run before it was extended are lost")
    if not (run / "metrics.json").exists() or read_json(run / "metrics.json")["options"]["n_epoch"] == EPOCHS:
        world.start_extension(run).wait().expect_done()
    expect_same_result(run, world.extended)
    expect_no_parts(run)


def kill_worker(world: World, rng: random.Random) -> None:
    """Kill a data worker, as the system does when memory is short."""
    run = world.new_run()
    program = world.start_training(run, WAYS["with workers"], handicaps={"slow_reading": (0.01,)})
    end = time.monotonic() + rng.uniform(0.3, 2)
    while program.is_running and (time.monotonic() < end or not program.workers()):
        time.sleep(0.002)
    # Workers that have only just started still have torch's handlers of the other two.
    ways = [signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS] if "epoch 0" in program.log else [signal.SIGKILL]
    workers = program.workers()
    if workers:
        os.kill(rng.choice(workers), rng.choice(ways))
    outcome = program.wait()
    program.expect_no_survivors()
    expect_whole(run)
    if outcome.status == 0 or not workers:
        outcome.expect_done()
    else:
        outcome.expect_refused("data worker")
    world.finish(run, WAYS["with workers"])


def _files(folder: Path) -> dict[str, str]:
    return {path.name: digest(path) for path in folder.iterdir() if path.name != ".lock"}


FAULTS = (
    Fault("kill -9 while training", kill_training, 30),
    Fault("kill -9 while saving", kill_while_saving, 20),
    Fault("kill -9 between file operations", kill_between_operations, 30),
    Fault("kill -9 while evaluating", kill_evaluation, 15),
    Fault("kill -9 while caching edits", kill_caching, 12),
    Fault("kill -9 while building a search index", kill_indexing, 12),
    Fault("kill -9 while converting", kill_converting, 8),
    Fault("kill -9 while extending a finished run", kill_extension, 15),
    Fault("kill -9 of a data worker", kill_worker, 15),
)
