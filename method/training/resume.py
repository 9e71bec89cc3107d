"""Finding the run to resume, and refusing options that would change its result.

Options are compared as JSON values, as opt.json stores them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from method.config.earlier import current_options
from method.config.parser import AUTO
from method.runtime.errors import InputError
from method.runtime.files import read_json
from method.runtime.run_folder import LAST, METRICS, OPTIONS, RunFolder, RunName, is_evaluation, new_run
from method.training.checkpoint import stored_options
from method.training.checkpoint_file import read_checkpoint

log = logging.getLogger(__name__)

_STATE = ("optimizer", "scaler", "progress", "random", "data", "options")  # in last.ckpt besides the weights
# Options that do not change the result of a run.
NO_EFFECT = {
    *("root_path", "results_root", "exp_id", "description", "resume", "save_every_steps", "num_workers", "pin_memory"),
    *("device", "device_ids", "only_eval", "eval_ckpt", "save_scores", "eval_memory_mb", "topk", "visual_feature"),
    *("zero_shot", "zero_shot_weight", "zero_shot_text", "clip_encoder"),
    *("report", "moments", "quiet", "feature_cache", "features_on_device", "config", "multi_gt", "multi_gt_subset"),
    "feature_recipe",  # the features themselves are compared
}

# How edited captions were encoded before runs recorded it; a resumed run must not switch to the dataset's setting.
_EDITS_BEFORE = {"text_layer": -1, "text_special_tokens": "keep"}


def saved_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options saved with `--resume DIR` or `--eval_ckpt FILE`; none for a published checkpoint."""
    folder = given.get("resume")
    if isinstance(folder, Path):
        if not (folder / OPTIONS).exists():
            raise InputError(f"--resume {folder}: no run there, expected a folder with {OPTIONS}")
        options = _options_of(folder)
        return _EDITS_BEFORE | options if options.get("neg_query_loss") else options
    stored = stored_options(given["eval_ckpt"]) if given.get("eval_ckpt") else None
    return current_options(stored) if stored else {}


def find_run(name: RunName, options: Mapping[str, Any]) -> tuple[Path | None, bool]:
    """The run that `--resume auto` continues, and whether it is finished; (None, False) if there is none yet.

    With --description, it is the run of that name. Without, it is the latest unfinished run without a description that
    has the same options, else the latest finished one.
    InputError when the run of that name has other options.
    """
    parent = name.parent
    if name.description:
        path = parent / name.description
        if not (path / OPTIONS).exists():  # killed before it wrote anything
            return None, False
        check_same_options(_options_of(path), options)
        return path, _is_finished(path, options)
    found = _unnamed_runs(name, options)
    latest = max(found, key=lambda path: (not found[path], (path / OPTIONS).stat().st_mtime), default=None)
    return latest, latest is not None and found[latest]


def finished_run(name: RunName, options: Mapping[str, Any]) -> Path | None:
    """The finished run with these options of the name --description, or without one the latest such run."""
    if name.description:
        path = name.parent / name.description
        return path if (path / METRICS).exists() and not _changed_options(_options_of(path), options) else None
    finished = [path for path, is_finished in _unnamed_runs(name, options).items() if is_finished]
    return max(finished, key=lambda path: (path / METRICS).stat().st_mtime, default=None)


def _unnamed_runs(name: RunName, options: Mapping[str, Any]) -> dict[Path, bool]:
    """The runs without a description that have these options, and whether they are finished."""
    paths = name.parent.glob(f"*/{OPTIONS}")
    same = [path.parent for path in paths if _has_same_options(path, options)]
    return {path: _is_finished(path, options) for path in same}


def _is_finished(path: Path, options: Mapping[str, Any]) -> bool:
    return (path / METRICS).exists() and _epochs_of(path / METRICS) == options["n_epoch"]


def _has_same_options(path: Path, options: Mapping[str, Any]) -> bool:
    try:
        before = read_json(path)
    except InputError as error:
        log.warning("skipped by --resume %s: %s", AUTO, error)
        return False
    if not isinstance(before, dict) or is_evaluation(before) or before.get("description") is not None:
        return False
    if before.get("n_epoch") != options["n_epoch"]:  # another learning rate schedule
        return False
    return not _changed_options(before, options)


def open_run(
    name: RunName, resume: Path | Literal[False] | None, options: Mapping[str, Any], processes: int = 1
) -> tuple[RunFolder, dict[str, Any] | None]:
    """The folder of a new or resumed run, and the saved state of a resumed one (None if it has not saved any).

    Args:
        name: of a new run.
        resume: the run to resume; False for the one of this name or the latest unfinished one; None for a new run.
        options: of this call.
        processes: their number.

    Raises:
        InputError: when there is no run to resume, the run is finished, or an option or the number of processes
            changed that affects the result.
    """
    if resume is None:
        return new_run(name), None
    path = resume or _latest_unfinished(name)
    if (path / METRICS).exists() and options["n_epoch"] <= (finished := _epochs_of(path / METRICS)):
        raise InputError(f"{path}: the run is finished; raise --n_epoch above {finished} to continue it")
    if (path / METRICS).exists() and not (path / LAST).exists():
        raise InputError(f"{path / LAST}: missing; a finished run cannot be extended without it")
    folder = RunFolder(path)
    try:
        check_same_options(_options_of(path), options)
        # lexists: a dangling link does not mean that nothing was saved.
        state = _read_state(path / LAST, options, processes) if os.path.lexists(path / LAST) else None
    except BaseException:
        folder.close()
        raise
    log.info("resuming %s%s", path, "" if state else ", which has not saved a state yet")
    return folder, state


def check_same_options(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """InputError naming every changed option that affects the result; `--n_epoch` may grow."""
    if changed := _changed_options(before, now):
        raise InputError(f"a resumed run must keep its options: {'; '.join(changed)}")


def _changed_options(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    before = current_options(_EDITS_BEFORE | dict(before) if before.get("neg_query_loss") else before)
    changed = []
    for name, value in now.items():
        if name in NO_EFFECT or name not in before or before[name] == value:
            continue
        if name == "n_epoch" and value > before[name]:
            continue
        changed.append(f"--{name} was {before[name]}, is {value}")
    return changed


def _read_state(path: Path, options: Mapping[str, Any], processes: int) -> dict[str, Any]:
    state = read_checkpoint(path)
    if missing := [name for name in _STATE if not isinstance(state.get(name), dict)]:
        raise InputError(f"{path}: not a training state: {', '.join(missing)} missing")
    try:
        check_same_options(state["options"], options)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    if (before := len(state["random"])) != processes:
        raise InputError(f"{path}: a resumed run must keep its number of processes: it was {before}, is {processes}")
    return state


def _epochs_of(path: Path) -> int:
    metrics = read_json(path)
    options = metrics.get("options") if isinstance(metrics, dict) else None
    epochs = options.get("n_epoch") if isinstance(options, dict) else None
    if not isinstance(epochs, int):
        raise InputError(f"{path}: expected the metrics of a run, with n_epoch among its options")
    return epochs


def _options_of(folder: Path) -> dict[str, Any]:
    options = read_json(folder / OPTIONS)
    if not isinstance(options, dict):
        raise InputError(f"{folder / OPTIONS}: expected the options of a run")
    if is_evaluation(options):
        raise InputError(f"--resume {folder}: an evaluation run; evaluations are rerun, not resumed")
    return current_options(options)


def _latest_unfinished(name: RunName) -> Path:
    parent = name.parent
    if name.description:
        if not (parent / name.description / OPTIONS).exists():
            raise InputError(f"--resume: no run {parent / name.description}")
        return parent / name.description
    runs = [
        path.parent
        for path in parent.glob(f"*/{OPTIONS}")
        if not (path.parent / METRICS).exists() and not is_evaluation(read_json(path))
    ]
    if not runs:
        raise InputError(f"--resume: no unfinished run in {parent}")
    return max(runs, key=lambda path: (path / OPTIONS).stat().st_mtime)
