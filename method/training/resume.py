"""Resuming a run: which one is meant, and whether the options still are the ones it was started with."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from method.config.flags import AUTO
from method.config.options import plain
from method.data.dataset import FeatureReader
from method.data.splits import Split, check_content
from method.runtime.errors import InputError, shown
from method.runtime.files import digest_of, read_json
from method.runtime.run_folder import BEST, LAST, METRICS, OPTIONS, RunFolder, is_evaluation, new_run, run_parent
from method.training.checkpoint import check_weights, is_plain, load_model, read_checkpoint, stored_options
from method.training.loop import Progress, Training

log = logging.getLogger(__name__)

_STATE = ("optimizer", "scaler", "progress", "random", "data", "options")  # in last.ckpt, beside the weights
_FEATURES = "features of the "  # before the name of a split, a digest of their content
# Options that change how a run is done, but not what comes out of it.
_FREE = {
    *("root_path", "results_root", "exp_id", "description", "resume", "save_every_steps", "num_workers", "pin_memory"),
    *("device", "device_ids", "only_eval", "eval_ckpt", "save_scores", "eval_memory_mb", "topk", "visual_feature"),
    *("report", "moments", "quiet", "feature_cache", "features_on_device"),
}

# How edited captions were encoded before their runs recorded it: a resumed one must not go over to the dataset's way.
_EDITS_BEFORE = {"text_layer": -1, "text_special_tokens": "keep"}


def kept_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the run that `--resume DIR` or `--eval_ckpt FILE` points to; none for a published checkpoint."""
    folder = given.get("resume")
    if isinstance(folder, Path):
        if not (folder / OPTIONS).exists():
            raise InputError(f"--resume {folder}: no run there, expected a folder with {OPTIONS}")
        options = _options_of(folder)
        return _EDITS_BEFORE | options if options.get("neg_query_loss") else options
    if given.get("eval_ckpt"):
        return stored_options(given["eval_ckpt"]) or {}
    return {}


def find_run(options: Mapping[str, Any]) -> tuple[Path | None, bool]:
    """The run that the flags of `--resume auto` name, and whether it is finished; (None, False) before its start.

    --description names a run. Without one it is the latest unfinished run of the same options that was not named
    either, else a finished one.
    InputError when the run of that description has other options.
    """
    parent = run_parent(options)
    if options["description"]:
        path = parent / options["description"]
        if not (path / OPTIONS).exists():  # it was killed before it could say what it is, and has nothing to lose
            return None, False
        check_same_options(_options_of(path), options)
        return path, _is_finished(path, options)
    same = [path.parent for path in parent.glob(f"*/{OPTIONS}") if _has_same_options(path, options)]
    found = {path: _is_finished(path, options) for path in same}
    latest = max(found, key=lambda path: (not found[path], (path / OPTIONS).stat().st_mtime), default=None)
    return latest, latest is not None and found[latest]


def _is_finished(path: Path, options: Mapping[str, Any]) -> bool:
    return (path / METRICS).exists() and _epochs_of(path / METRICS) == options["n_epoch"]


def _has_same_options(path: Path, options: Mapping[str, Any]) -> bool:
    try:
        before = read_json(path)
    except InputError as error:
        log.warning("not considered for --resume %s: %s", AUTO, error)
        return False
    if not isinstance(before, dict) or is_evaluation(before) or before.get("description") is not None:
        return False
    if before.get("n_epoch") != options["n_epoch"]:  # another schedule of the learning rate
        return False
    return not _changed_options(before, options)


def open_run(options: Mapping[str, Any], processes: int = 1) -> tuple[RunFolder, dict[str, Any] | None]:
    """The folder to train in and, when a run goes on, the state it was left in (None: it had not saved one yet).

    Raises:
        InputError: when there is nothing to go on with, the run is finished, or an option or the number of processes
            changed, which would alter the result.
    """
    if options["resume"] is None:
        return new_run(options), None
    path = options["resume"] or _latest_unfinished(options)
    if (path / METRICS).exists() and options["n_epoch"] <= (finished := _epochs_of(path / METRICS)):
        raise InputError(f"{path}: the run is finished; a larger --n_epoch than {finished} would go on with it")
    if (path / METRICS).exists() and not (path / LAST).exists():
        raise InputError(f"{path / LAST}: no such file, and without it a finished run cannot be gone on with")
    folder = RunFolder(path)
    try:
        check_same_options(_options_of(path), options)
        # A link to what is not there any more is no sign that nothing was saved.
        state = _read_state(path / LAST, options, processes) if os.path.lexists(path / LAST) else None
    except BaseException:
        folder.close()
        raise
    log.info("going on with %s%s", path, "" if state else ", which had saved nothing yet")
    return folder, state


def check_same_options(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """InputError naming every option that changed and would alter the result; `--n_epoch` may grow."""
    if changed := _changed_options(before, now):
        raise InputError(f"a resumed run must keep its options: {'; '.join(changed)}")


def _changed_options(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    if before.get("neg_query_loss"):
        before = {**_EDITS_BEFORE, **before}
    changed = []
    for name, value in plain(now).items():
        if name in _FREE or name not in before or before[name] == value:
            continue
        if name == "n_epoch" and value > before[name]:
            continue
        changed.append(f"--{name} was {before[name]}, is {value}")
    return changed


def fingerprints(splits: Iterable[Split], reader: FeatureReader) -> dict[str, str]:
    """Of each split a digest of its captions and the lengths of their features, and one of what the features are.

    InputError, or a warning, for features that are zeros.
    """
    digests = {}
    for name, split in {split.name: split for split in splits}.items():
        captions = [[caption.id, caption.text] for caption in split.captions]
        digests[name] = digest_of([captions, split.frames, split.tokens])
        digests[f"{_FEATURES}{name}"] = check_content(split, reader)
    return digests


def take_up(training: Training, state: Mapping[str, Any], folder: Path, data: Mapping[str, str]) -> None:
    """Put a training where `state`, the content of last.ckpt in `folder`, left it.

    InputError, naming the file, when `data`, the fingerprints of the splits, are others than then, when the state does
    not fit the training, and when the best epoch's checkpoint is broken, which would be missed only at the very end.
    """
    path = folder / LAST
    known = state["data"]
    # Runs that were begun before there was a digest of the features go on without.
    expected = {name: digest for name, digest in data.items() if name in known or not name.startswith(_FEATURES)}
    if changed := [name for name, digest in expected.items() if known.get(name) != digest]:
        raise InputError(f"{path}: the captions or features have changed since: {', '.join(changed)}")
    check_weights(training.model, state["model"], path)
    decay = [group["weight_decay"] for group in training.optimizer.param_groups]
    try:
        moments = [moment for own in state["optimizer"]["state"].values() for moment in own.values()]
        if not all(moment.dtype == torch.float32 and is_plain(moment) for moment in moments):
            raise ValueError("its optimizer holds what is no array of 32-bit numbers")
        training.restore(state)
        _check_progress(training)
        _check_optimizer(training, decay)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"{path}: not a state that the training can go on with ({error})") from error
    if training.progress.best_epoch >= 0:
        load_model(folder / BEST, training.model.architecture)


def _check_progress(training: Training) -> None:
    progress, steps = training.progress, training.optimizer.schedule.steps // training.settings.epochs
    for name, fresh in asdict(Progress()).items():
        if not isinstance(getattr(progress, name), type(fresh)):
            raise TypeError(f"its {name} is no {type(fresh).__name__}")
    if progress.epoch < 0 or not 0 <= progress.step <= steps or not -1 <= progress.best_epoch < progress.epoch:
        raise ValueError(f"it stands at step {progress.step} of epoch {progress.epoch}, best {progress.best_epoch}")
    in_order = all(row["epoch"] == number for number, row in enumerate(progress.history))
    if len(progress.history) != progress.epoch or not in_order:
        raise ValueError(f"its history is not that of {progress.epoch} epochs")
    if not all(isinstance(number, float) for number in progress.terms.values()):
        raise TypeError("its terms are no numbers")
    json.dumps(progress.history)  # raises for what history.jsonl cannot hold


def _check_optimizer(training: Training, decay: Sequence[float]) -> None:
    groups, progress = training.optimizer.param_groups, training.progress
    done = progress.epoch * training.optimizer.schedule.steps // training.settings.epochs + progress.step
    if [group["weight_decay"] for group in groups] != decay:
        raise ValueError("its weight decay is another")
    for group in groups:
        if not isinstance(group["step"], int) or not 0 <= group["step"] <= done:
            raise ValueError(f"its optimizer has done {shown(group['step'])} steps, the training {done}")
        for weight in group["params"]:
            for name, moment in training.optimizer.state.get(weight, {}).items():
                if moment.shape != weight.shape:
                    raise ValueError(f"its {name} is {tuple(moment.shape)}, expected {tuple(weight.shape)}")
                if not moment.isfinite().all():
                    raise ValueError(f"its {name} holds NaN or infinity")


def _read_state(path: Path, options: Mapping[str, Any], processes: int) -> dict[str, Any]:
    state = read_checkpoint(path)
    if lacking := [name for name in _STATE if not isinstance(state.get(name), dict)]:
        raise InputError(f"{path}: not the state of a training, lacks {', '.join(lacking)}")
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
        raise InputError(f"{path}: expected the metrics of a run and its options, with n_epoch")
    return epochs


def _options_of(folder: Path) -> dict[str, Any]:
    options = read_json(folder / OPTIONS)
    if not isinstance(options, dict):
        raise InputError(f"{folder / OPTIONS}: expected the options of a run")
    if is_evaluation(options):
        raise InputError(f"--resume {folder}: an evaluation, which is not gone on with but done again")
    return options


def _latest_unfinished(options: Mapping[str, Any]) -> Path:
    parent = run_parent(options)
    if options["description"]:
        if not (parent / options["description"] / OPTIONS).exists():
            raise InputError(f"--resume: no run {parent / options['description']}")
        return parent / options["description"]
    runs = [
        path.parent
        for path in parent.glob(f"*/{OPTIONS}")
        if not (path.parent / METRICS).exists() and not is_evaluation(read_json(path))
    ]
    if not runs:
        raise InputError(f"--resume: no unfinished run in {parent}")
    return max(runs, key=lambda path: (path / OPTIONS).stat().st_mtime)
