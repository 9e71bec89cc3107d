"""Pipes, devices, links and folders in place of files, and folders with odd names."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.faults.programs import Lost, Outcome, Program
from tests.faults.world import CPU, EPOCHS, Fault, World, expect_same_metrics, expect_same_result, expect_whole

_LINE = 5_000  # characters that a message may have at most: it shows no content of a file at length

# Replacements of a file.
_ODD: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a folder": lambda path: path.mkdir(),
    "a folder with a file": lambda path: (path / "file").mkdir(parents=True),
    "endless zeros": lambda path: path.symlink_to("/dev/zero"),
    "a device without content": lambda path: path.symlink_to("/dev/null"),
    "a link to itself": lambda path: path.symlink_to(path),
    "a link to nothing": lambda path: path.symlink_to(path.with_name("nothing") / "there"),
    "an empty file": lambda path: path.touch(),
}


def put(path: Path, rng: random.Random) -> str:
    """Replace a file or folder with something odd; returns what."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    what = rng.choice(list(_ODD))
    _ODD[what](path)
    return f"{what} for {path.name}"


def odd_file_of_a_run(world: World, rng: random.Random) -> None:
    """An odd file in a run that is resumed: the usual result, or refused by name."""
    run = world.new_run()
    shutil.copytree(world.stopped, run)
    names = ["last.ckpt", "model.ckpt", "opt.json", "history.jsonl", "train.log", "tensorboard", "scores.npz"]
    what = put(run / rng.choice(names), rng)
    outcome = world.starter.start("method.train", ["--resume", str(run), *CPU]).wait()
    if _is_done(outcome, what, run):
        expect_same_result(run, world.reference)


def odd_file_of_the_data(world: World, rng: random.Random) -> None:
    """An odd file in a dataset, an encoder or a cache."""
    data, run = world.copy_of_data(), world.new_run()
    cache, encoder = world.fresh("cache"), world.fresh("encoder")
    shutil.copytree(world.cache, cache)
    shutil.copytree(world.text_encoder, encoder)
    train = data.flags("--n_epoch", "1", "--description", run.name)
    program: Callable[[], Program]
    path, program = rng.choice([
        *((path, lambda: world.starter.start("method.train", train)) for path in _files_of(data.root / "dataset")),
        *((path, lambda: world.start_with_cache(cache)) for path in sorted(cache.glob("[!.]*"))),
        *((path, lambda: world.start_caching(world.fresh("cache"), encoder=encoder)) for path in _files_of(encoder)),
    ])  # fmt: skip
    what = put(path, rng)
    _is_done(program().wait(), what, path, data.root, encoder)


def odd_checkpoint(world: World, rng: random.Random) -> None:
    """An odd file as a checkpoint or a search index."""
    path, run = world.fresh("model.ckpt"), world.new_run()
    search = ["--eval_ckpt", str(path), "--query_id", "E00#enc#0", "--json", *CPU]
    evaluate = world.data.flags("--eval_ckpt", str(path), "--description", run.name)
    if rng.random() < 0.5:
        what = put(path, rng)
        convert = [str(path), f"{path}.other"]
        programs = [("method.evaluate", evaluate), ("method.search", search), ("utils.convert_checkpoint", convert)]
        program, arguments = rng.choice(programs)
    else:
        shutil.copy(world.reference / "model.ckpt", path)
        index = path.with_name(f"{path.name}.index")
        if rng.random() < 0.7:
            index.mkdir()
            index /= "manifest.json"
        what = put(index, rng)
        program, arguments = "method.search", search
    _is_done(world.starter.start(program, arguments).wait(), what, path)


def _files_of(folder: Path) -> list[Path]:
    """All files below a folder but those of its caches, which programs make themselves."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.parent.suffix != ".cache")


def odd_names(world: World, rng: random.Random) -> None:
    """Folder names that are not UTF-8, or special to shells, terminals and patterns."""
    name = rng.choice(
        ["caf\udce9\udcff", "two\nlines", "tab\t", "quo'te\"", "-x", "$HOME", "[a-z]*", "\x1b[31m", "風 "]
    )
    run = world.new_run(world.fresh(name)).with_name(name)
    place = ("--results_root", str(run.parents[2]), f"--description={name}", "--n_epoch", str(EPOCHS))
    world.starter.start("method.train", world.data.flags(*place)).wait().expect_done()
    expect_whole(run)
    expect_same_result(run, world.reference)
    again = world.new_run()
    evaluate = ["--eval_ckpt", str(run / "model.ckpt"), f"--description={again.name}", *CPU, "--save_scores"]
    world.starter.start("method.evaluate", evaluate).wait().expect_done()
    expect_same_metrics(run.with_name(again.name), world.reference)


def _is_done(outcome: Outcome, what: str, *mentioned: object) -> bool:
    """Whether the program succeeded. Lost unless it did or refused in one line."""
    try:
        if outcome.status == 0:
            outcome.expect_done()
            return True
        outcome.expect_refused(*mentioned)
        if len(outcome.last_line) > _LINE:
            raise Lost(f"a line of {len(outcome.last_line)} characters")
    except Lost as harm:
        raise Lost(f"{what}: {harm}") from harm
    return False


FAULTS = (
    Fault("an odd file in a run", odd_file_of_a_run, 40),
    Fault("an odd file in a dataset", odd_file_of_the_data, 60),
    Fault("an odd file as a checkpoint", odd_checkpoint, 40),
    Fault("folders with odd names", odd_names, 12),
)
