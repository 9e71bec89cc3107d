"""Runs below a folder, grouped by configuration."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from method.config.earlier import current_options
from method.config.flags import make_parser
from method.evaluation.metrics import RECALLS
from method.runtime.errors import InputError
from method.runtime.files import read_json
from method.runtime.run_folder import METRICS, OPTIONS, is_evaluation
from method.training.resume import NO_EFFECT

# Runs that differ in these alone are repetitions. The name of an experiment may stand for another version of the code.
_SAME_CONFIGURATION = {"seed", *NO_EFFECT} - {"exp_id"}


@dataclass(frozen=True)
class Run:
    """A finished run: where it is, what sets it apart from others, its seed, the reported epoch, and recalls."""

    path: Path
    configuration: dict[str, Any]
    seed: int
    epoch: int
    recalls: dict[str, float]


@dataclass(frozen=True)
class Group:
    """Runs of one configuration, by seed; `name`: the options that tell the groups of a dataset apart."""

    name: str
    configuration: dict[str, Any]
    runs: list[Run]


def find_runs(folders: Iterable[Path]) -> list[Path]:
    """Run folders at or below each folder, once each. InputError for a folder without any."""
    found: dict[Path, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"{folder}: expected a folder, found {'a file' if folder.exists() else 'nothing'}")
        paths = sorted(path.parent for path in folder.rglob(OPTIONS))
        if not paths:
            raise InputError(f"{folder}: no runs in it, expected folders with {OPTIONS}")
        for path in paths:
            found.setdefault(path.resolve(), path)
    return list(found.values())


def read_runs(paths: Iterable[Path], score: str, evaluations: bool) -> tuple[list[Run], list[str]]:
    """The finished runs, and why each of the others is left out.

    Args:
        paths: of run folders.
        score: the score whose recalls are read.
        evaluations: read evaluations of checkpoints instead of trainings.
    """
    defaults = vars(make_parser("").parse_args([]))
    runs, left_out = [], []
    for path in paths:
        try:
            options = read_json(path / OPTIONS)
            if is_evaluation(options) != evaluations:
                left_out.append(f"{path}: {'a training' if evaluations else 'an evaluation of a checkpoint'}")
            elif not (path / METRICS).exists():
                left_out.append(f"{path}: unfinished")
            else:
                runs.append(_read(path, score, defaults))
        except InputError as error:
            left_out.append(str(error))
    return runs, left_out


def _read(path: Path, score: str, defaults: Mapping[str, Any]) -> Run:
    metrics = read_json(path / METRICS)
    try:
        options = current_options(metrics["options"])
        sizes = {"videos": metrics["videos"], "captions": metrics["queries"]}
        # Earlier versions lack later options, and did what is now the default.
        configuration = {name: options.get(name, default) for name, default in defaults.items()} | sizes
        configuration = {name: value for name, value in configuration.items() if name not in _SAME_CONFIGURATION}
        recalls = {key: float(metrics[score][key]) for key in RECALLS}
        return Run(path, configuration, int(options["seed"]), int(metrics["epoch"]), recalls)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{path / METRICS}: not the metrics of a run, or not of this score ({reason})") from error


def group_runs(runs: Sequence[Run]) -> tuple[list[Group], list[str]]:
    """The runs by configuration, and the repetitions of a seed, which are left out: they add no independent run."""
    by_key: dict[str, list[Run]] = {}
    left_out = []
    for run in runs:
        own = by_key.setdefault(json.dumps(run.configuration, sort_keys=True, default=str), [])
        same = [other for other in own if other.seed == run.seed]
        if same:
            left_out.append(f"{run.path}: seed {run.seed} again, as in {same[0].path}")
        else:
            own.append(run)
    groups = [(own[0].configuration, sorted(own, key=lambda run: run.seed)) for own in by_key.values()]
    names = list(_names([configuration for configuration, _ in groups]))
    return [Group(name, *group) for name, group in zip(names, groups, strict=True)], left_out


def _names(configurations: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """For each configuration the options that are not the same in all of its dataset.

    The dataset comes first if there are several, or if nothing differs.
    """
    for own in configurations:
        peers = [other for other in configurations if other["dataset_name"] == own["dataset_name"]]
        differ = [name for name, value in own.items() if any(other[name] != value for other in peers)]
        words = [f"{name}={_shown(own[name])}" for name in differ]
        yield ", ".join(words if words and len(peers) == len(configurations) else [str(own["dataset_name"]), *words])


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
