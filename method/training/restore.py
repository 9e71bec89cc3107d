"""Restoring a training from last.ckpt, after checking that data and state still fit it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from method.data.dataset import FeatureReader
from method.data.splits import Split, check_content
from method.runtime.errors import InputError, shown
from method.runtime.files import digest_of
from method.runtime.run_folder import BEST, LAST
from method.training.checkpoint import check_weights, load_model
from method.training.checkpoint_file import is_plain
from method.training.loop import TRAINED, Progress, Training

_FEATURES = "features of the "  # key prefix of the digests of feature values


def fingerprints(splits: Iterable[Split], reader: FeatureReader) -> dict[str, str]:
    """For each split a digest of its captions and feature lengths, and one of the feature values.

    InputError, or a warning, for features that are all zeros.
    """
    digests = {}
    for name, split in {split.name: split for split in splits}.items():
        captions = [[caption.id, caption.text] for caption in split.captions]
        digests[name] = digest_of([captions, split.frames, split.tokens])
        digests[f"{_FEATURES}{name}"] = check_content(split, reader)
    return digests


def restore(training: Training, state: Mapping[str, Any], folder: Path, data: Mapping[str, str]) -> None:
    """Restore a training from `state`, the content of last.ckpt in `folder`.

    InputError, naming the file, when `data`, the fingerprints of the splits, has changed, when the state does not fit
    the training, and when the best epoch's checkpoint is damaged, which would otherwise show only at the end.
    """
    path = folder / LAST
    known = state["data"]
    # Older runs have no digest of the feature values.
    expected = {name: digest for name, digest in data.items() if name in known or not name.startswith(_FEATURES)}
    if changed := [name for name, digest in expected.items() if known.get(name) != digest]:
        raise InputError(f"{path}: the captions or features have changed: {', '.join(changed)}")
    check_weights(training.model, state["model"], path)
    weights = state.get(TRAINED, {})
    decay = [group["weight_decay"] for group in training.optimizer.param_groups]
    try:
        moments = [moment for moments in state["optimizer"]["state"].values() for moment in moments.values()]
        if not all(tensor.dtype == torch.float32 and is_plain(tensor) for tensor in (*moments, *weights.values())):
            raise ValueError("the optimizer state is not all dense float32")
        if training.average is not None:
            check_weights(training.model, weights, path)
        training.restore(state)
        _check_progress(training)
        _check_optimizer(training, decay)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"{path}: cannot resume from this state ({error})") from error
    if training.progress.best_epoch >= 0:
        load_model(folder / BEST, training.model.architecture)


def _check_progress(training: Training) -> None:
    progress, steps = training.progress, training.optimizer.schedule.steps // training.settings.epochs
    for name, fresh in asdict(Progress()).items():
        if not isinstance(getattr(progress, name), type(fresh)):
            raise TypeError(f"{name} is not of type {type(fresh).__name__}")
    if progress.epoch < 0 or not 0 <= progress.step <= steps or not -1 <= progress.best_epoch < progress.epoch:
        raise ValueError(
            f"impossible progress: epoch {progress.epoch}, step {progress.step}, best epoch {progress.best_epoch}"
        )
    in_order = all(row["epoch"] == number for number, row in enumerate(progress.history))
    if len(progress.history) != progress.epoch or not in_order:
        raise ValueError(f"history: expected {progress.epoch} epochs in order")
    if not all(isinstance(number, float) for number in progress.terms.values()):
        raise TypeError("terms are not numbers")
    json.dumps(progress.history)  # raises if history.jsonl could not be written


def _check_optimizer(training: Training, decay: Sequence[float]) -> None:
    groups, progress = training.optimizer.param_groups, training.progress
    done = progress.epoch * training.optimizer.schedule.steps // training.settings.epochs + progress.step
    if [group["weight_decay"] for group in groups] != decay:
        raise ValueError("weight decay differs")
    for group in groups:
        if not isinstance(group["step"], int) or not 0 <= group["step"] <= done:
            raise ValueError(f"the optimizer is at step {shown(group['step'])}, the training at step {done}")
        for weight in group["params"]:
            for name, moment in training.optimizer.state.get(weight, {}).items():
                if moment.shape != weight.shape:
                    raise ValueError(f"{name} has shape {tuple(moment.shape)}, expected {tuple(weight.shape)}")
                if not moment.isfinite().all():
                    raise ValueError(f"{name} is not finite")
