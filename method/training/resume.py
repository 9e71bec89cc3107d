"""Going on with a run: which one is meant, and whether the options still are the ones it was started with."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from method.config import plain
from method.errors import InputError
from method.files import read_json
from method.run_folder import LAST, METRICS, OPTIONS, RunFolder, new_run, run_parent
from method.training.checkpoint import read_checkpoint, stored_options

log = logging.getLogger(__name__)

# Options that change how a run is done, but not what comes out of it.
_FREE = {
    *("root_path", "results_root", "exp_id", "description", "resume", "save_every_steps", "num_workers", "pin_memory"),
    *("device", "device_ids", "only_eval", "eval_ckpt", "save_scores", "eval_memory_mb", "topk", "visual_feature"),
    *("report", "moments", "quiet"),
}


def kept_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the run that `--resume DIR` or `--eval_ckpt FILE` points to; none for a published checkpoint."""
    if given.get("resume"):
        folder = Path(given["resume"])
        if not (folder / OPTIONS).exists():
            raise InputError(f"--resume {folder}: no run there, expected a folder with {OPTIONS}")
        return _options_of(folder)
    if given.get("eval_ckpt"):
        return stored_options(Path(given["eval_ckpt"])) or {}
    return {}


def open_run(options: Mapping[str, Any]) -> tuple[RunFolder, dict[str, Any] | None]:
    """The folder to train in and, when a run goes on, the state it was left in (None: it had not saved one yet).

    Raises:
        InputError: when there is nothing to go on with, the run is finished, or an option changed that would alter
            the result.
    """
    if options["resume"] is None:
        return new_run(options), None
    path = Path(options["resume"]) if options["resume"] else _latest_unfinished(options)
    folder = RunFolder(path)
    try:
        if (path / METRICS).exists():
            finished = read_json(path / METRICS).get("options", {}).get("n_epoch", 0)
            if options["n_epoch"] <= finished:
                raise InputError(f"{path}: the run is finished; a larger --n_epoch than {finished} would go on with it")
        check_same_options(_options_of(path), options)
        state = read_checkpoint(path / LAST) if (path / LAST).exists() else None
    except BaseException:
        folder.close()
        raise
    log.info("going on with %s%s", path, "" if state else ", which had saved nothing yet")
    return folder, state


def check_same_options(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """InputError naming every option that changed and would alter the result; `--n_epoch` may grow."""
    changed = []
    for name, value in plain(now).items():
        if name in _FREE or name not in before or before[name] == value:
            continue
        if name == "n_epoch" and value > before[name]:
            continue
        changed.append(f"--{name} was {before[name]}, is {value}")
    if changed:
        raise InputError(f"a resumed run must keep its options: {'; '.join(changed)}")


def _options_of(folder: Path) -> dict[str, Any]:
    options = read_json(folder / OPTIONS)
    if not isinstance(options, dict):
        raise InputError(f"{folder / OPTIONS}: expected the options of a run")
    return options


def _latest_unfinished(options: Mapping[str, Any]) -> Path:
    parent = run_parent(options)
    if options["description"]:
        if not (parent / options["description"] / OPTIONS).exists():
            raise InputError(f"--resume: no run {parent / options['description']}")
        return parent / options["description"]
    runs = [path.parent for path in parent.glob(f"*/{OPTIONS}") if not (path.parent / METRICS).exists()]
    if not runs:
        raise InputError(f"--resume: no unfinished run in {parent}")
    return max(runs, key=lambda path: (path / OPTIONS).stat().st_mtime)
