"""Files damaged at random offsets: refused by name, or without effect on the result, or with finite results."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from method.config import options as config
from method.runtime.files import read_json
from tests.faults.programs import Lost, Outcome
from tests.faults.world import CPU, EPOCHS, Fault, World, answer, expect_same_result

_SECTOR = 512


def damage(path: Path, rng: random.Random, others: list[Path]) -> str:
    """Damage a file as disks, interrupted copies and people do; returns what was done."""
    content = bytearray(path.read_bytes())
    place, way = (
        rng.randrange(len(content)),
        rng.choice(["bit", "bit", "bits", "byte", "cut", "zeros", "noise", "swap"]),
    )
    if way == "bit":
        content[place] ^= 1 << rng.randrange(8)
    elif way == "bits":
        for _ in range(20):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    elif way == "byte":
        content[place] = rng.randrange(256)
    elif way == "cut":
        del content[place:]
    elif way in ("zeros", "noise"):
        start = place // _SECTOR * _SECTOR
        length = len(content[start : start + rng.choice([_SECTOR, 8 * _SECTOR])])
        content[start : start + length] = bytes(length) if way == "zeros" else rng.randbytes(length)
    else:
        content = bytearray(rng.choice(others).read_bytes())
    path.write_bytes(content)
    return f"{path.name}: {way} at {place}"


def damaged_run(world: World, rng: random.Random) -> None:
    """A file of a stopped run is damaged before the run is resumed."""
    run = world.new_run()
    shutil.copytree(world.stopped, run)
    path = run / rng.choice(["last.ckpt", "last.ckpt", "model.ckpt", "opt.json", "history.jsonl"])
    others = [file for folder in (world.stopped, world.other_run) for file in folder.iterdir() if file.is_file()]
    what = damage(path, rng, [file for file in others if file.name != path.name or file.parent != world.stopped])
    outcome = world.starter.start("method.train", ["--resume", str(run), *CPU]).wait()
    if outcome.status:
        _refused(outcome, what, path, "--")
        return
    outcome.expect_done()
    if path.name == "opt.json" and read_json(run / "metrics.json")["options"]["n_epoch"] != EPOCHS:
        return  # another number of epochs may be wanted, and the metrics say it
    try:
        expect_same_result(run, world.reference)
    except Lost as harm:
        raise Lost(f"{what}: {harm}") from harm


def damaged_dataset(world: World, rng: random.Random) -> None:
    """A file of the dataset is damaged before it is trained on or evaluated with."""
    data = world.copy_of_data()
    path = rng.choice([data.features, data.features, data.texts, data.train_txt, data.test_txt])
    what = damage(path, rng, [data.features, data.texts, data.test_txt, next(data.train_txt.parent.glob("*.json"))])
    more = rng.choice([["--n_epoch", "1"], ["--eval_ckpt", str(world.reference / "model.ckpt"), "--only_eval"]])
    workers = ("--num_workers", rng.choice(["0", "2"]))
    outcome = world.starter.start("method.train", data.flags("--description", "run", *more, *workers)).wait()
    if outcome.status:
        _refused(outcome, what, data.root)
    else:
        outcome.expect_done()
        _expect_finite(read_json(data.results / "run" / "metrics.json"), what)


def damaged_vocabulary(world: World, rng: random.Random) -> None:
    """A vocabulary, the cache of encoded edits or the text encoder is damaged; the cache is then repaired."""
    data, cache = world.copy_of_data(), world.fresh("cache")
    shutil.copytree(world.cache, cache)
    vocabularies = sorted(data.train_txt.parent.glob("*.json"))
    path = rng.choice([*vocabularies, *sorted(cache.glob("[!.]*"))])
    what = damage(path, rng, [*vocabularies, data.texts, *cache.glob("block-0000[01].rows")])
    outcome = world.start_with_cache(cache, data).wait()
    if outcome.status:
        _refused(outcome, what, data.root, cache)
    else:
        outcome.expect_done()
    if path.parent == cache:
        outcome = world.start_caching(cache, data).wait()
        if outcome.status:
            _refused(outcome, what, cache)
        elif [file.read_bytes() for file in _blocks(cache)] != [file.read_bytes() for file in _blocks(world.cache)]:
            raise Lost(f"{what}: the repaired cache differs")


def damaged_index(world: World, rng: random.Random) -> None:
    """The index of a search is damaged; the answer is the same, or the index is refused."""
    checkpoint = world.fresh("model.ckpt")
    shutil.copy(world.reference / "model.ckpt", checkpoint)
    arguments = ["--eval_ckpt", str(checkpoint), "--query_id", "E00#enc#0", "--json", *CPU]
    world.starter.start("method.search", arguments).wait().expect_done()
    path = rng.choice(sorted(checkpoint.parent.glob("*.index/[!.]*")))
    what = damage(path, rng, [checkpoint, world.data.features])
    outcome = world.starter.start("method.search", arguments).wait()
    if outcome.status:
        _refused(outcome, what, path)
    elif answer(outcome) != world.answer:
        raise Lost(f"{what}: another answer")


def damaged_options(world: World, rng: random.Random) -> None:
    """The dataset's YAML file is damaged."""
    folder = world.fresh("configs")
    shutil.copytree(config.CONFIGS, folder)
    path = folder / "demo.yaml"
    what = damage(path, rng, [*config.CONFIGS.iterdir(), world.data.train_txt, world.data.features])
    arguments = world.data.flags("--n_epoch", "1", "--description", world.new_run().name)
    outcome = world.starter.start("method.train", arguments, {"configs_in": (str(folder),)}).wait()
    if outcome.status:
        _refused(outcome, what, path, "--", world.data.root)
    else:
        outcome.expect_done()


def _refused(outcome: Outcome, what: str, *mentioned: object) -> None:
    try:
        outcome.expect_refused(*mentioned)
    except Lost as harm:
        raise Lost(f"{what}: {harm}") from harm


def _expect_finite(value: Any, what: str) -> None:
    if any(isinstance(number, float) and not math.isfinite(number) for number in _leaves(value)):
        raise Lost(f"{what}: non-finite numbers: {json.dumps(value)}")


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for part in value.values():
            yield from _leaves(part)
    else:
        yield value


def _blocks(folder: Path) -> list[Path]:
    return sorted(folder.glob("block-*.rows"))


FAULTS = (
    Fault("damaged files of a run", damaged_run, 80),
    Fault("damaged captions and features", damaged_dataset, 80),
    Fault("damaged vocabularies and caches", damaged_vocabulary, 40),
    Fault("a damaged search index", damaged_index, 30),
    Fault("damaged options of a dataset", damaged_options, 40),
)
