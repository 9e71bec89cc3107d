"""Compare evaluations of the same captions: differences with intervals and tests, captions won and lost.

    python utils/compare_runs.py results/charades/a3prvr/RUN results/charades/a3prvr/OTHER
    python utils/compare_runs.py first/ranks.csv second/ranks.csv --format latex

The first run is what every other is compared with: a positive difference means that the other is better. Reads
ranks.csv, which every evaluation and the end of every training writes.
"""

from __future__ import annotations

import json
import string
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from method.config.parser import Parser, user_path
from method.evaluation.intervals import LEVEL, RESAMPLES, SEED
from method.evaluation.metrics import RECALLS
from method.evaluation.ranks_file import RankTable, read_ranks
from method.runtime.errors import InputError, run_command
from method.runtime.run_folder import RANKS
from utils.runs.comparison import RANK, Change, Comparison, Line, compare
from utils.runs.tables import FORMATS, Table, show

_LABELS = {**RECALLS, RANK: "MedR"}
METHOD = (
    f"differences in points, with {LEVEL:.0%} percentile bootstrap intervals and two-sided p-values of exchanging the "
    f"two rankings of a video's captions at random; both by video, {RESAMPLES:,} resamples, seed {SEED}"
)
CAVEAT = (
    "They are about other queries, not about other training seeds (utils/summarize_runs.py), and p is not corrected "
    "for the number of comparisons."
)
COUNTS = (
    "better, same and worse count captions: by R@K those found among the first K, by SumR those found at more K, by "
    "MedR those with a lower rank"
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the comparison of runs."""
    parser = Parser(description="Compare evaluations of the same captions.")
    parser.add_argument(
        "runs",
        nargs="+",
        type=user_path,
        metavar="RUN",
        help="run folders or ranks.csv files; the first is the baseline",
    )
    parser.add_argument("--format", choices=(*FORMATS, "json"), default="text", help="csv: the differences alone")
    parser.add_argument("--changed", type=int, default=5, help="captions to list that became better, and worse")
    options = parser.parse_args(arguments)
    if not 2 <= len(options.runs) <= len(string.ascii_uppercase):
        raise InputError(f"{len(options.runs)} runs, expected 2 to {len(string.ascii_uppercase)}")
    if options.changed < 0:
        raise InputError(f"--changed {options.changed}: expected at least 0")
    first, *others = options.runs
    baseline = read(first)
    comparisons = [compare(baseline, read(path), (first, path), options.changed) for path in others]
    if options.format == "json":
        print(json.dumps(as_json(first, baseline, comparisons), indent=2))
        return
    letters = dict(zip(options.runs, string.ascii_uppercase, strict=False))
    if options.format == "csv":
        show([_numbers(first, comparisons)], [], "csv")
        return
    videos = len(set(baseline.video_ids))
    notes = [f"{letter}: {path}" for path, letter in letters.items()]
    notes += [f"{len(baseline.caption_ids)} captions of {videos} videos; {METHOD}. {CAVEAT}", f"{COUNTS}."]
    notes += [f"{letters[own.run]}: not compared, in one run only: {', '.join(own.left_out)}"
              for own in comparisons if own.left_out]  # fmt: skip
    show([_differences(comparisons, letters), *_changes(comparisons, letters)], notes, options.format)


def read(path: Path) -> RankTable:
    """The ranks of a run folder, or of a ranks.csv. InputError naming the remedy for a run without."""
    if path.is_dir():
        if not (path / RANKS).exists():
            raise InputError(f"{path / RANKS}: no such file; method/evaluate.py writes it for a checkpoint")
        path = path / RANKS
    return read_ranks(path)


def _differences(comparisons: Sequence[Comparison], letters: Mapping[Path, str]) -> Table:
    header = ["run", "score", "metric", "A", "other", "difference", f"{LEVEL:.0%} interval", "p"]
    rows = [
        [letters[own.run], line.score, _LABELS[line.metric], f"{line.first:.1f}", f"{line.second:.1f}",
         *_cells(line), line.better, line.same, line.worse]
        for own in comparisons
        for line in own.lines
    ]  # fmt: skip
    return Table([*header, "better", "same", "worse"], rows, left=(0, 1, 2))


def _cells(line: Line) -> tuple[str, str, str]:
    if line.difference is None:
        return f"{line.second - line.first:+.1f}", "–", "–"
    low, high = line.difference.interval
    p = f"{line.difference.p:.3f}" if line.difference.p >= 0.001 else "<0.001"
    return f"{line.difference.value:+.1f}", f"{low:+.1f} to {high:+.1f}", p


def _changes(comparisons: Sequence[Comparison], letters: Mapping[Path, str]) -> list[Table]:
    rows = [
        [letters[own.run], what, change.caption_id, change.first, change.second, change.text]
        for own in comparisons
        for what, changes in (("better", own.better), ("worse", own.worse))
        for change in changes
    ]
    return (
        [Table(["run", "most", "caption", "rank in A", "other", "sentence"], rows, left=(0, 1, 2, 5))] if rows else []
    )


def _numbers(first: Path, comparisons: Sequence[Comparison]) -> Table:
    header = ["first_run", "second_run", "score", "metric", "first", "second", "difference", "low", "high", "p"]
    rows = [[first, own.run, *_line_as_json(line).values()] for own in comparisons for line in own.lines]
    return Table([*header, "better", "same", "worse"], rows)


def as_json(first: Path, baseline: RankTable, comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """The comparison as JSON values; differences are second minus first."""
    return {
        "about": f"{METHOD}. {CAVEAT} {COUNTS}.",
        "first_run": str(first),
        "captions": len(baseline.caption_ids),
        "videos": len(set(baseline.video_ids)),
        "comparisons": [
            {
                "second_run": str(own.run),
                "metrics": [_line_as_json(line) for line in own.lines],
                "became_better": [_change_as_json(change) for change in own.better],
                "became_worse": [_change_as_json(change) for change in own.worse],
            }
            for own in comparisons
        ],
    }


def _line_as_json(line: Line) -> dict[str, Any]:
    difference = line.difference
    low, high = difference.interval if difference else (None, None)
    return {
        "score": line.score,
        "metric": line.metric,
        "first": line.first,
        "second": line.second,
        "difference": difference.value if difference else line.second - line.first,
        "low": low,
        "high": high,
        "p": difference.p if difference else None,
        "better": line.better,
        "same": line.same,
        "worse": line.worse,
    }


def _change_as_json(change: Change) -> dict[str, Any]:
    return {"caption_id": change.caption_id, "first_rank": change.first, "second_rank": change.second,
            "sentence": change.text}  # fmt: skip


if __name__ == "__main__":
    run_command(main)
