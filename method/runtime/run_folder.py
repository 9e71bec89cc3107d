"""The folder of one run: who may write there, its log, and what is recorded of the circumstances."""

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
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from method.runtime.errors import InputError
from method.runtime.files import atomic_writer, exclusive_lock, move, read_json, write_bytes, write_json
from method.runtime.processes import count_processes

log = logging.getLogger(__name__)

REPOSITORY = Path(__file__).resolve().parents[2]
METRICS = "metrics.json"
OPTIONS = "opt.json"
BEST = "model.ckpt"
LAST = "last.ckpt"
_PACKAGES = ("torch", "numpy", "h5py", "transformers")


class RunFolder:
    """`results/<dataset>/<exp_id>/<description or start time>/`, locked for this process as long as it lives.

    A lock of the operating system's, so that a process that is killed leaves none behind. What else it left, files that
    it was still writing, is removed.
    """

    def __init__(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._lock = contextlib.ExitStack()
        busy = f"{path}: another process is writing to this run"
        self._lock.enter_context(exclusive_lock(path / ".lock", busy, wait=False))
        for left_over in [*path.glob(".*.part"), *path.glob("n_epoch_*/.*.part")]:
            shutil.rmtree(left_over) if left_over.is_dir() else left_over.unlink()
        self._handler = _log_to(path / "train.log")

    def close(self) -> None:
        """Give the folder free and stop logging to it."""
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

    def put_aside_results(self) -> None:
        """Move what a finished run that goes on has found to n_epoch_<epochs>/, with a copy of its checkpoint.

        Here it would be taken for what the longer run has found.
        """
        metrics = self.path / METRICS
        if not metrics.exists():
            return
        aside = self.path / f"n_epoch_{read_json(metrics)['options']['n_epoch']}"
        write_bytes(aside / BEST, lambda file: file.write((self.path / BEST).read_bytes()))
        for name in ("scores.npz", "report", METRICS):  # in this order: while there are metrics, all of it is repeated
            if (self.path / name).exists():
                move(self.path / name, aside / name)
        log.info("the results so far are in %s", aside)

    def write_scores(self, caption_ids: list[str], video_ids: list[str], scores: Mapping[str, Any]) -> None:
        """Write scores.npz: query_ids, video_ids, and (Q, V) float32 for each score."""
        with atomic_writer(self.path / "scores.npz") as file:
            np.savez(file, query_ids=np.array(caption_ids), video_ids=np.array(video_ids), **scores)


def new_run(options: Mapping[str, Any]) -> RunFolder:
    """Make the folder of a new run. InputError when the name is taken: a run is never overwritten."""
    parent = run_parent(options)
    if options["description"]:
        path = parent / options["description"]
        _refuse_taken(path, options)
    else:
        path = _unused(parent, datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))
    folder = RunFolder(path)
    try:
        _refuse_taken(path, options)  # by a run that was faster
    except InputError:
        folder.close()
        raise
    return folder


def _unused(parent: Path, name: str) -> Path:
    """Make a folder of this name, or with a number behind it: runs may start in the same second."""
    for count in itertools.count(1):
        path = parent / (name if count == 1 else f"{name}_{count}")
        with contextlib.suppress(FileExistsError):
            path.mkdir(parents=True)
            break
    return path


def _refuse_taken(path: Path, options: Mapping[str, Any]) -> None:
    if (path / METRICS).exists():
        raise InputError(f"--description {path.name}: {path} holds a finished run; choose another name")
    if not (path / OPTIONS).exists():
        return
    if not is_evaluation(read_json(path / OPTIONS)):
        raise InputError(
            f"--description {path.name}: {path} holds an unfinished run; go on with --resume, or rename it"
        )
    if not is_evaluation(options):  # an unfinished one is simply done again, but only as what it was
        raise InputError(f"--description {path.name}: {path} holds an unfinished evaluation; choose another name")


def is_evaluation(options: object) -> bool:
    """Whether these are the options of an evaluation, which leaves nothing to go on with, and not of a training."""
    return isinstance(options, Mapping) and options.get("eval_ckpt") is not None


def run_parent(options: Mapping[str, Any]) -> Path:
    """Folder of all runs of an experiment."""
    for flag in ("dataset_name", "exp_id", "description"):
        if options[flag] is not None and (Path(options[flag]).name != options[flag] or options[flag] in ("", "..")):
            raise InputError(f"--{flag} {options[flag]!r}: expected the name of a folder, not a path")
    parent: Path = options["results_root"] / options["dataset_name"] / options["exp_id"]
    return parent


def circumstances() -> dict[str, Any]:
    """Versions of the packages, the interpreter and this repository, and how many processes shared the work."""
    packages = {name: version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), **packages, "processes": count_processes(), "git": _git_state()}


def _git_state() -> dict[str, Any] | None:
    """The revision of this repository and whether its files are as committed; None outside a checkout."""
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
    """Show the log on standard error; progress bars use it too, results go to standard output.

    Of several processes that do the same only the first says it.
    """
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    if not is_first:
        root.addHandler(logging.NullHandler())
    elif not any(getattr(handler, "stream", None) is sys.stderr for handler in root.handlers):
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(message)s"))
        root.addHandler(handler)


class _LogFile(logging.Handler):
    """A log that loses lines rather than the run when its file cannot be written."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        # Without a buffer, which would fail once more when it is closed, and without waiting for a pipe's reader.
        self._file = io.FileIO(path, "a", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK, 0o666))
        self._is_whole = True

    def emit(self, record: logging.LogRecord) -> None:
        """Add a line."""
        try:
            self._file.write(f"{self.format(record)}\n".encode("utf-8", "backslashreplace"))
        except OSError as error:
            if self._is_whole:
                self._is_whole = False
                log.warning("%s: lines are lost (%s)", self._file.name, error.strerror)

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
