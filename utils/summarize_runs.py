"""Mean and standard deviation of runs over seeds, one row a configuration.

    python utils/summarize_runs.py results/charades
    python utils/summarize_runs.py results/charades results/tvr --format latex

Reads all runs at or below the folders. Runs are of one configuration if their options differ only in the seed, the
description and what has no effect on results.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from method.config.parser import Parser, user_path
from method.evaluation.metrics import FUSED, RECALLS
from method.runtime.errors import InputError, run_command, summarize
from utils.runs.runs import Group, find_runs, group_runs, read_runs
from utils.runs.tables import FORMATS, Table, show


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = Parser(description="Mean and standard deviation of runs over seeds, one row a configuration.")
    parser.add_argument(
        "folders", nargs="+", type=user_path, metavar="FOLDER", help="run folders, or folders above them"
    )
    parser.add_argument("--format", choices=FORMATS, default="text", help="of the table")
    parser.add_argument("--score", default=FUSED, help="score to summarize: a branch or 'fused'")
    parser.add_argument(
        "--evaluations", action="store_true", help="summarize evaluations of checkpoints instead of trainings"
    )
    options = parser.parse_args(arguments)
    print_summary(find_runs(options.folders), options.score, options.evaluations, options.format)


def print_summary(paths: Sequence[Path], score: str = FUSED, evaluations: bool = False, form: str = "text") -> None:
    """Print the table of these runs. InputError when none of them is finished."""
    runs, left_out = read_runs(paths, score, evaluations)
    if not runs:
        raise InputError(
            f"no finished {'evaluation' if evaluations else 'training'} to summarize: {summarize(left_out)}"
        )
    groups, repeated = group_runs(runs)
    notes = [
        f"{score} score: mean ± standard deviation of a sample (n - 1) over the runs, which have different seeds",
        _reported(groups, evaluations),
        *(f"left out: {line}" for line in (*left_out, *repeated)),
    ]
    show([_numbers(groups) if form == "csv" else _table(groups)], notes, form)


def _reported(groups: Sequence[Group], evaluations: bool) -> str:
    if evaluations:
        return "each run is the evaluation of one checkpoint; epochs are those of the checkpoints"
    held_out = {bool(group.configuration["holdout_fraction"]) for group in groups}
    on = {
        (False,): "the evaluated split itself, as published",
        (True,): "held-out training videos",
        (False, True): "held-out training videos if holdout_fraction is above 0, else on the evaluated split itself",
    }[tuple(sorted(held_out))]
    return f"of each run its best epoch by fused SumR is reported, selected on {on}; epochs count from 0"


def _table(groups: Sequence[Group]) -> Table:
    rows = []
    for group in groups:
        cells = []
        for key in RECALLS:
            mean, deviation = _statistics(group, key)
            cells.append(f"{mean:.1f}" + (f" ± {deviation:.1f}" if deviation is not None else ""))
        epochs = sorted(run.epoch for run in group.runs)
        span = f"{epochs[0]}" if epochs[0] == epochs[-1] else f"{epochs[0]}–{epochs[-1]}"
        rows.append([group.name, len(group.runs), span, *cells])
    return Table(["configuration", "runs", "epochs", *RECALLS.values()], rows)


def _numbers(groups: Sequence[Group]) -> Table:
    """The same with a column for each number, not rounded, and the seeds and epochs of the runs."""
    header = [
        "configuration",
        "runs",
        "seeds",
        "epochs",
        *(f"{key}_{what}" for key in RECALLS for what in ("mean", "sd")),
    ]
    rows = [
        [group.name, len(group.runs), " ".join(str(run.seed) for run in group.runs),
         " ".join(str(run.epoch) for run in group.runs),
         *(value for key in RECALLS for value in _statistics(group, key))]
        for group in groups
    ]  # fmt: skip
    return Table(header, rows)


def _statistics(group: Group, key: str) -> tuple[float, float | None]:
    values = [run.recalls[key] for run in group.runs]
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


if __name__ == "__main__":
    run_command(main)
