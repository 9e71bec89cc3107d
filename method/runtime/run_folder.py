"""The folder of a run: its lock, its log, and the environment recorded in metrics.json."""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from method.runtime.disk import move
from method.runtime.errors import InputError
from method.runtime.files import atomic_writer, read_json, write_bytes, write_json
from method.runtime.locks import exclusive_lock
from method.runtime.processes import count_processes

log = logging.getLogger(__name__)

REPOSITORY = Path(__file__).resolve().parents[2]
METRICS = "metrics.json"
OPTIONS = "opt.json"
BEST = "model.ckpt"
LAST = "last.ckpt"
RANKS = "ranks.csv"
_PACKAGES = ("torch", "numpy", "h5py", "transformers")


@dataclass(frozen=True, kw_only=True)
class RunName:
    """What a run is called, by the flags --results_root, --dataset_name, --exp_id and --description."""

    results: Path
    dataset: str
    experiment: str
    description: str | None

    @property
    def parent(self) -> Path:
        """The folder of all runs of an experiment. InputError for a name that is a path."""
        names = {"dataset_name": self.dataset, "exp_id": self.experiment, "description": self.description}
        for flag, name in names.items():
            if name is not None and (Path(name).name != name or name in ("", "..")):
                raise InputError(f"--{flag} {name!r}: expected the name of a folder, not a path")
        return self.results / self.dataset / self.experiment


class RunFolder:
    """`results/<dataset>/<exp_id>/<description or start time>/`, locked while this object is open.

    The operating system releases the lock of a killed process. Partial files that such a process left are removed.
    """

    def __init__(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._lock = contextlib.ExitStack()
        busy = f"{path}: another process is writing to this run"
        self._lock.enter_context(exclusive_lock(path / ".lock", busy, wait=False))
        for partial in [*path.glob(".*.part"), *path.glob("n_epoch_*/.*.part")]:
            shutil.rmtree(partial) if partial.is_dir() else partial.unlink()
        self._handler = _log_to(path / "train.log")

    def close(self) -> None:
        """Release the lock and stop logging to the folder."""
        logging.getLogger().removeHandler(self._handler)
        self._handler.close()
        self._lock.close()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def write_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Write metrics.json, which marks the run as finished."""
        write_json(self.path / METRICS, metrics)

    def archive_results(self) -> None:
        """Move the results of a finished run that is extended to n_epoch_<epochs>/, with a copy of its checkpoint.

        Otherwise they could be mistaken for the results of the longer run.
        """
        metrics = self.path / METRICS
        if not metrics.exists():
            return
        archive = self.path / f"n_epoch_{read_json(metrics)['options']['n_epoch']}"
        write_bytes(archive / BEST, lambda file: file.write((self.path / BEST).read_bytes()))
        for name in ("scores.npz", RANKS, "report", METRICS):  # metrics last: while they exist, all is repeated
            if (self.path / name).exists():
                move(self.path / name, archive / name)
        log.info("previous results moved to %s", archive)

    def write_scores(self, caption_ids: list[str], video_ids: list[str], scores: Mapping[str, Any]) -> None:
        """Write scores.npz: query_ids, video_ids, and (Q, V) float32 for each score."""
        with atomic_writer(self.path / "scores.npz") as file:
            np.savez(file, query_ids=np.array(caption_ids), video_ids=np.array(video_ids), **scores)


def new_run(name: RunName, evaluation: bool = False) -> RunFolder:
    """Create the folder of a new run. InputError when the name is taken: runs are never overwritten.

    evaluation: whether it is that of an evaluation, which takes the place of an unfinished one of the same name.
    """
    parent = name.parent
    if name.description:
        path = parent / name.description
        _refuse_taken(path, evaluation)
    else:
        path = _unused(parent, datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))
    folder = RunFolder(path)
    try:
        _refuse_taken(path, evaluation)  # by a run that started meanwhile
    except InputError:
        folder.close()
        raise
    return folder


def _unused(parent: Path, name: str) -> Path:
    """Create a folder of this name, with a number appended if needed: runs may start in the same second."""
    for count in itertools.count(1):
        path = parent / (name if count == 1 else f"{name}_{count}")
        with contextlib.suppress(FileExistsError):
            path.mkdir(parents=True)
            break
    return path


def _refuse_taken(path: Path, evaluation: bool) -> None:
    if (path / METRICS).exists():
        raise InputError(f"--description {path.name}: {path} holds a finished run; choose another name")
    if not (path / OPTIONS).exists():
        return
    if not is_evaluation(read_json(path / OPTIONS)):
        raise InputError(
            f"--description {path.name}: {path} holds an unfinished run; continue it with --resume, or rename it"
        )
    if not evaluation:  # an unfinished evaluation is rerun, but not replaced by a training
        raise InputError(f"--description {path.name}: {path} holds an unfinished evaluation; choose another name")


def is_evaluation(options: object) -> bool:
    """Whether these are the options of an evaluation, which cannot be resumed, and not of a training."""
    return isinstance(options, Mapping) and bool(options.get("eval_ckpt") or options.get("zero_shot"))


def environment_info() -> dict[str, Any]:
    """Versions of Python, packages and this repository, and the number of processes."""
    packages = {name: version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), **packages, "processes": count_processes(), "git": _git_state()}


def _git_state() -> dict[str, Any] | None:
    """Revision of this repository and whether the working tree is clean; None outside a checkout."""
    try:
        revision, changes = (
            subprocess.run(
                ["git", *command], cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=30
            ).stdout
            for command in (("rev-parse", "HEAD"), ("status", "--porcelain"))
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return {"revision": revision.strip(), "clean": not changes.strip()}


def log_to_terminal(is_first: bool = True) -> None:
    """Log to standard error, on rank 0 only. Progress bars go there too, results to standard output."""
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    if not is_first:
        root.addHandler(logging.NullHandler())
    elif not any(getattr(handler, "stream", None) is sys.stderr for handler in root.handlers):
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(message)s"))
        root.addHandler(handler)


class _LogFile(logging.Handler):
    """A log file whose write errors cost lines, not the run."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        # Unbuffered, because a buffer would fail again on close; non-blocking, in case it is a pipe without a reader.
        self._file = io.FileIO(path, "a", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK, 0o666))
        self._complete = True

    def emit(self, record: logging.LogRecord) -> None:
        """Add a line."""
        try:
            self._file.write(f"{self.format(record)}\n".encode("utf-8", "backslashreplace"))
        except OSError as error:
            if self._complete:
                self._complete = False
                log.warning("%s: log lines are lost (%s)", self._file.name, error.strerror)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()


def _log_to(path: Path) -> logging.Handler:
    handler = _LogFile(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger().addHandler(handler)
    log.info("torch %s, %d CPU threads", torch.__version__, torch.get_num_threads())
    return handler
