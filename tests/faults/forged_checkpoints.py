"""Checkpoints that bring no code, but sizes, types and numbers that cannot be: refused by name, in little memory."""

from __future__ import annotations

import random
import shutil
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from method.training.checkpoint_file import read_checkpoint
from tests.faults.pickle_bombs import Call, pickler
from tests.faults.programs import Lost
from tests.faults.world import CPU, Fault, World, digest, expect_whole

_MEMORY = 1 << 32  # bytes of addresses that a program may use: its libraries take most of them
_NO_CANARY = Path("none")

Content = dict[str, Any]

_TENSORS: dict[str, Callable[[Tensor], Any]] = {
    "text": lambda weight: "x",
    "nothing": lambda weight: None,
    "NaN": lambda weight: weight * torch.nan,
    "too large for 32 bits": lambda weight: weight.double() * 1e300,
    "whole numbers": lambda weight: weight.int(),
    "8 bits": lambda weight: weight.to(torch.float8_e5m2),
    "complex": lambda weight: weight.to(torch.complex64),
    "sparse": lambda weight: weight.to_sparse(),
    "sparse rows": lambda weight: weight.to_sparse_csr() if weight.dim() == 2 else weight.to_sparse(),
    "quantised": lambda weight: torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8),
    "nested": lambda weight: torch.nested.nested_tensor([weight, weight]),
    "without content": lambda weight: weight.to("meta"),
    "one dimension more": lambda weight: weight[None],
    "no rows": lambda weight: weight[:0] if weight.dim() else weight[None][:0],
    "one number for an exabyte": lambda weight: torch.zeros(1).expand(1 << 30, 1 << 28),
}
_NUMBERS: tuple[Any, ...] = (-1, 1 << 40, 2**63, 10**400, 1.5, float("nan"), "384", "", None, [4], {"a": 1}, (1, 2))
_NO_EPOCHS = tuple(value for value in _NUMBERS if not isinstance(value, int) or value < 0)
_ROOM = (
    Call("builtins:bytearray", 10**12),
    Call("torch:Tensor", 10**12),
    Call("torch:FloatTensor", 10**12),
)
_PARTS = ("weight", "weight", "all weights", "moment", "architecture", "epoch", "progress", "room")


def _lie(content: Content, rng: random.Random) -> str:
    """Change one thing in a checkpoint so that it is none; returns what."""
    part = rng.choice(_PARTS)
    if part in ("weight", "all weights"):
        how = rng.choice(list(_TENSORS))
        names = sorted(content["model"])
        for name in names if part == "all weights" else rng.sample(names, 1):
            content["model"][name] = _TENSORS[how](content["model"][name])
    elif part == "moment":
        how = rng.choice(list(_TENSORS))
        moments = rng.choice(list(content["optimizer"]["state"].values()))
        name = rng.choice(sorted(moments))
        moments[name] = _TENSORS[how](moments[name])
    elif part == "architecture":
        how = rng.choice(["hidden_size", "heads", "max_frames", "query_width", "fusion", "branches"])
        content["architecture"][how] = rng.choice(_NUMBERS)
    elif part == "epoch":
        how = ""
        content["epoch"] = rng.choice(_NO_EPOCHS)
    elif part == "progress":
        how = rng.choice(["epoch", "step", "best_epoch", "history", "terms"])
        content["progress"][how] = rng.choice(_NUMBERS)
    else:
        how = "that is asked for"
        content["beside"] = rng.choice(_ROOM)
    return f"{part} {how}"


def impossible_content(world: World, rng: random.Random) -> None:
    """Give a program such a checkpoint, or go on with a run whose state it is; there is little memory."""
    run = world.new_run()
    shutil.copytree(world.stopped, run)
    path = run / "last.ckpt"
    content = read_checkpoint(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, on kinds of tensors that it does not promise yet
        what = _lie(content, rng)
    module = types.ModuleType("pickler")
    vars(module).update(Pickler=pickler(_NO_CANARY, "reduce"), dump=None)
    torch.save(content, path, pickle_module=module)
    before = digest(run / "model.ckpt")
    resume = ("method.train", ["--resume", str(run), *CPU])
    evaluate = ("method.evaluate", world.data.flags("--eval_ckpt", str(path), "--description", world.new_run().name))
    convert = ("utils.convert_checkpoint", [str(path), f"{path}.other"])
    commands = [resume, evaluate, convert]
    if what.startswith(("moment", "progress")):
        commands = [resume]
    if what.startswith("architecture"):  # a run that goes on has its own
        commands = [evaluate, convert]
    outcome = world.starter.start(*rng.choice(commands), limits={"RLIMIT_AS": _MEMORY}).wait()
    try:
        outcome.expect_refused(path)
    except Lost as harm:
        raise Lost(f"{what}: {harm}") from harm
    if digest(run / "model.ckpt") != before or (run / "metrics.json").exists():
        raise Lost(f"{what}: the run has been changed")


def little_memory(world: World, rng: random.Random) -> None:
    """A model for which there is out of memory: a line that says so, wherever it runs out."""
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
    Fault("a checkpoint that cannot be", impossible_content, 150, 3),
    Fault("a model that needs more memory", little_memory, 15, 1),
)
