"""Full disks, limits on files and memory, read-only folders, and too little shared memory."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.faults.programs import Outcome
from tests.faults.world import CPU, WAYS, Fault, Skipped, World, expect_whole

_WAY = WAYS["saving every step"]


@contextlib.contextmanager
def _small_disk(folder: Path, kilobytes: int) -> Iterator[Path]:
    """A disk of this size, mounted in the folder."""
    folder.mkdir()
    _as_root("mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder))
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def _as_root(*command: str) -> None:
    if os.geteuid() or shutil.which(command[0]) is None:
        raise Skipped(f"needs root and {command[0]}")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Skipped(f"{' '.join(command[:-1])}: {done.stderr.strip()}")


def _expect_done_or_refused(outcome: Outcome, *mentioned: object) -> None:
    if outcome.status == 0:
        outcome.expect_done()
    else:
        outcome.expect_refused(*mentioned)


def small_disk(world: World, rng: random.Random) -> None:
    """Train on a disk that is often too small; with more space the run resumes."""
    with _small_disk(world.fresh("disk"), rng.randint(64, 3000)) as disk:
        run = world.new_run(disk / "results")
        _expect_done_or_refused(world.start_training(run, _WAY).wait(), "No space left on device")
        expect_whole(run)
        _as_root("mount", "-o", "remount,size=64m", str(disk))
        world.finish(run, _WAY)


def limited_files(world: World, rng: random.Random) -> None:
    """A limit on the size of files, as quotas and batch systems set it."""
    run = world.new_run()
    limit = rng.choice([rng.randint(1_000, 20_000), rng.randint(20_000, 1_200_000)])
    _expect_done_or_refused(world.start_training(run, _WAY, limits={"RLIMIT_FSIZE": limit}).wait(), "File too large")
    expect_whole(run)
    world.finish(run, _WAY)


@contextlib.contextmanager
def _locked_folder(folder: Path) -> Iterator[None]:
    """Make a folder read-only, even for root."""
    if os.geteuid():
        before = folder.stat().st_mode
        folder.chmod(0o555)
        try:
            yield
        finally:
            folder.chmod(before)
        return
    _as_root("chattr", "+i", str(folder))
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", str(folder)], check=True)


def locked_folder(world: World, rng: random.Random) -> None:
    """The folder of the run, or of all runs, becomes read-only at some moment."""
    run = world.new_run(world.fresh("place"))
    run.parents[rng.randint(0, 2)].mkdir(parents=True)
    program = world.start_training(run, _WAY, handicaps={"slow_disk": (0.001,)})
    if rng.random() < 0.7:
        program.wait_for("training split")
        time.sleep(rng.uniform(0, 1.5 * world.durations["saving every step"]))
    places = [folder for folder in (run, *run.parents[:3]) if folder.exists()]
    with _locked_folder(places[0]):
        _expect_done_or_refused(program.wait(), "Operation not permitted", "Permission denied")
        expect_whole(run)
    world.finish(run, _WAY)


def locked_results_of_others(world: World, rng: random.Random) -> None:
    """An evaluation, a cache or a converted checkpoint that cannot be written."""
    place = world.fresh("place")
    place.mkdir()
    with _locked_folder(place):
        start, evaluated = world.starter.start, ["--eval_ckpt", str(world.reference / "model.ckpt"), *CPU]
        programs = [
            start("method.evaluate", [*evaluated, "--results_root", str(place / "results")]),
            start("method.search", [*evaluated, "--index_dir", str(place), "--query_id", "E00#enc#0"]),
            start("utils.convert_checkpoint", [evaluated[1], str(place / "other.ckpt")]),
            world.start_caching(place / "cache"),
        ]
        for program in programs:
            program.wait().expect_refused(place)


def no_shared_memory(world: World, rng: random.Random) -> None:
    """Data workers on a machine, most often a container, with little shared memory."""
    _as_root("unshare", "-m", "true")
    run = world.new_run()
    handicaps = {"shared_memory": (rng.choice([4, 16, 48, 64, 100, 200]),)}
    _expect_done_or_refused(
        world.start_training(run, WAYS["with workers"], handicaps=handicaps).wait(), "shm", "data worker"
    )
    expect_whole(run)
    world.finish(run, _WAY)


def few_open_files(world: World, rng: random.Random) -> None:
    """A limit on open files that is too low for data workers."""
    run = world.new_run()
    limits = {"RLIMIT_NOFILE": rng.randint(25, 150)}
    outcome = world.start_training(run, WAYS["with workers"], limits=limits).wait()
    _expect_done_or_refused(outcome, "open files", "data worker")
    expect_whole(run)
    world.finish(run, WAYS["with workers"])


def little_memory(world: World, rng: random.Random) -> None:
    """A model that needs more memory than there is: one line that says so."""
    run = world.new_run()
    wide = ("--hidden_size", str(rng.choice([1024, 2048, 4096, 8192, 1 << 17, 1 << 20])), "--n_heads", "8")
    limit = world.starter.memory + rng.randint(50, 400) * 1_000_000
    outcome = world.start_training(run, wide, limits={"RLIMIT_AS": limit}).wait()
    if outcome.status == 0:
        outcome.expect_done()
    else:
        outcome.expect_refused("out of memory")
    expect_whole(run)


FAULTS = (
    Fault("a disk that is too small", small_disk, 20),
    Fault("a limit on the size of files", limited_files, 15),
    Fault("a folder that becomes read-only", locked_folder, 12),
    Fault("read-only folders of other results", locked_results_of_others, 1),
    Fault("too few open files", few_open_files, 10),
    Fault("too little shared memory", no_shared_memory, 6),
    Fault("a model that needs more memory", little_memory, 15),
)
