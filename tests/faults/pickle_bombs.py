"""Checkpoint files that contain code, which no program that reads checkpoints may execute."""

from __future__ import annotations

import contextlib
import io
import pickle
import random
import shutil
import sys
import tarfile
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from method.training.checkpoint_file import read_checkpoint
from tests.faults.programs import Lost, Program
from tests.faults.world import CPU, Fault, World

_CANARY = "CANARY"
_TOUCH, _OPEN = f"touch {_CANARY}", f"open('{_CANARY}', 'w')"


class Call:
    """Pickled as a call of a function, 'module:name' or what another call returns."""

    def __init__(self, function: str | Call, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments


_PATH = Call("pathlib:PosixPath", _CANARY)
_OS = Call("importlib:import_module", "os")
# Each creates the canary, a file or folder, when the pickle module loads it.
BOMBS = {
    "os.system": Call("os:system", _TOUCH),
    "posix.system": Call("posix:system", _TOUCH),
    "os.popen": Call("os:popen", _TOUCH),
    "os.mkdir": Call("os:mkdir", _CANARY),
    "os.open": Call("os:open", _CANARY, 0o101),
    "os.posix_spawn": Call("os:posix_spawn", "/bin/sh", ["sh", "-c", _TOUCH], {}),
    "os by getattr": Call(Call("builtins:getattr", _OS, "system"), _TOUCH),
    "os by methodcaller": Call(Call("operator:methodcaller", "mkdir", _CANARY), _OS),
    "subprocess.Popen": Call("subprocess:Popen", ["touch", _CANARY]),
    "subprocess.getoutput": Call("subprocess:getoutput", _TOUCH),
    "exec": Call("builtins:exec", _OPEN),
    "eval": Call("builtins:eval", _OPEN),
    "eval of Python 2": Call("__builtin__:eval", _OPEN),
    "open": Call("builtins:open", _CANARY, "w"),
    "io.open": Call("io:open", _CANARY, "w"),
    "pathlib": Call(Call(Call("operator:attrgetter", "touch"), _PATH)),
    "shutil": Call("shutil:copyfile", __file__, _CANARY),
    "cProfile": Call("cProfile:run", _OPEN),
    "runpy": Call("runpy:_run_code", _OPEN, {}),
    "logging": Call("logging:FileHandler", _CANARY),
    "sqlite3": Call("sqlite3.dbapi2:connect", _CANARY),
    "zipfile": Call("zipfile:ZipFile", _CANARY, "w"),
    "numpy": Call("numpy:savetxt", _CANARY, [1]),
    "numpy.memmap": Call("numpy:memmap", _CANARY, "uint8", "w+", 0, 8),
    "h5py": Call("h5py:File", _CANARY, "w"),
    "torch.save": Call("torch:save", 1, _CANARY),
    "torch.hub": Call("torch.hub:download_url_to_file", f"file://{__file__}", _CANARY, None, False),
    "yaml": Call("yaml:unsafe_load", f"!!python/object/apply:os.system ['{_TOUCH}']"),
    "a function of this program": Call("method.runtime.files:write_text", _PATH, "x"),
    "a class of this program": Call("method.runtime.run_folder:RunFolder", _PATH),
}
WAYS_TO_CALL = ("reduce", "stack global", "inst", "obj")


def pickler(canary: Path, way: str) -> type[Any]:
    """A pickler that writes calls in one of the ways that pickles have, with the canary's path in their arguments."""

    python_pickler: Any = pickle._Pickler  # the one whose parts can be replaced

    class Pickler(python_pickler):  # type: ignore[misc]
        def save(self, value: Any, *more: Any, **named: Any) -> None:
            if isinstance(value, Call):
                self.save_call(value)
            else:
                super().save(value.replace(_CANARY, str(canary)) if isinstance(value, str) else value, *more, **named)

        def save_call(self, call: Call) -> None:
            nested = isinstance(call.function, Call)
            if way in ("reduce", "stack global") or nested:
                self.save_function(call.function)
                self.save(tuple(call.arguments))
                self.write(pickle.REDUCE)
                return
            self.write(pickle.MARK)
            if way == "obj":
                self.save_function(call.function)
            for argument in call.arguments:
                self.save(argument)
            module, name = str(call.function).split(":")
            self.write(pickle.OBJ if way == "obj" else pickle.INST + f"{module}\n{name}\n".encode())

        def save_function(self, function: str | Call) -> None:
            if isinstance(function, Call):
                self.save(function)
                return
            module, name = function.split(":")
            if way != "stack global":
                self.write(pickle.GLOBAL + f"{module}\n{name}\n".encode())
                return
            for word in (module, name):
                self.write(pickle.BINUNICODE + len(word).to_bytes(4, "little") + word.encode())
            self.write(pickle.STACK_GLOBAL)

    return Pickler


def pickled(value: Any, canary: Path, way: str, protocol: int = 2) -> bytes:
    """A value with calls in it as a pickle."""
    stream = io.BytesIO()
    pickler(canary, way)(stream, protocol).dump(value)
    return stream.getvalue()


def main() -> None:
    """Let every bomb go off, to show that they are live."""
    for name, bomb in BOMBS.items():
        for way in WAYS_TO_CALL:
            with contextlib.suppress(Exception):
                pickle.loads(pickled(bomb, Path(sys.argv[1]) / f"{name} {way}".replace(" ", "_"), way))


def _places(content: dict[str, Any], bomb: Call) -> dict[str, Any]:
    """Contents of checkpoints with a bomb at different keys."""
    weight = next(iter(content["model"]))
    optimizer = content["optimizer"]
    return {
        "alone": bomb,
        "epoch": {**content, "epoch": bomb},
        "weight": {**content, "model": {**content["model"], weight: bomb}},
        "optimizer": {**content, "optimizer": {**optimizer, "state": {**optimizer["state"], 0: {"m": [(bomb,)]}}}},
        "options": {**content, "options": {**content["options"], "extra": {"deep": [bomb]}}},
        "beside": {**content, "opt": bomb},
    }


def _write(path: Path, content: Any, canary: Path, rng: random.Random) -> None:
    """Write a checkpoint with a bomb in one of the formats that torch has read."""
    module = types.ModuleType("pickler")
    vars(module).update(Pickler=pickler(canary, rng.choice(WAYS_TO_CALL)), dump=pickle.dump)
    form = rng.choice(["archive", "older", "pickle", "tar", "script"])
    if form in ("archive", "older"):
        torch.save(content, path, pickle_module=module, _use_new_zipfile_serialization=form == "archive")
        return
    bomb = content if isinstance(content, Call) else BOMBS["os.system"]
    data = pickled(bomb, canary, rng.choice(WAYS_TO_CALL), rng.choice([0, 2, 4]))
    if form == "pickle":
        path.write_bytes(data)
    elif form == "tar":
        with tarfile.open(path, "w") as tar:
            for name in ("sys_info", "pickle", "storages", "tensors"):
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            for name in ("data.pkl", "constants.pkl", "version", "code/__torch__.py", "code/__torch__.py.debug_pkl"):
                archive.writestr(f"archive/{name}", data)


def _readers(world: World, path: Path, rng: random.Random) -> Callable[[], Program]:
    """A program that reads the checkpoint at `path`."""
    start, data = world.starter.start, world.data
    name = world.new_run().name
    readers: list[Callable[[], Program]] = [
        lambda: start("method.evaluate", ["--eval_ckpt", str(path), *CPU]),
        lambda: start("method.evaluate", data.flags("--eval_ckpt", str(path), "--description", name)),
        lambda: start("method.train", data.flags("--eval_ckpt", str(path), "--only_eval", "--description", name)),
        lambda: start("method.search", ["--eval_ckpt", str(path), "--query_id", "E00#enc#0", *CPU]),
        lambda: start("utils.convert_checkpoint", [str(path), f"{path}.other", *data.flags()]),
    ]
    return rng.choice(readers)


def bomb(world: World, rng: random.Random) -> None:
    """Give a program a checkpoint that contains code."""
    canary = world.fresh("canary")
    content = read_checkpoint(world.reference / "last.ckpt")
    content = rng.choice(list(_places(content, rng.choice(list(BOMBS.values()))).values()))
    if rng.random() < 0.6:
        path = world.fresh("harm.ckpt")
        _write(path, content, canary, rng)
        program = _readers(world, path, rng)()
    else:
        run = world.fresh("run")
        shutil.copytree(world.reference, run)
        path = run / rng.choice(["last.ckpt", "model.ckpt"])
        _write(path, content, canary, rng)
        program = world.starter.start("method.train", ["--resume", str(run), "--n_epoch", "4", *CPU])
    outcome = program.wait()
    program.expect_no_survivors()
    if canary.exists():
        raise Lost(f"code from a file has run: {outcome.show()}")
    outcome.expect_refused(path)


FAULTS = (Fault("a checkpoint that contains code", bomb, 120),)
