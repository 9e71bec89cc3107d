"""Print the recalls of a run next to those of a random ranking, in percent.

python utils/print_metrics.py results/charades/a3prvr/2026-01-31_12-00-00/metrics.json
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from method.config.flags import Parser, user_path
from method.evaluation.metrics import RECALL_AT, RECALLS
from method.runtime.errors import InputError, run_command
from method.runtime.files import read_json


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table of a metrics.json."""
    parser = Parser(description="Print the recalls of a run next to chance.")
    parser.add_argument("metrics", type=user_path, help="metrics.json of a run")
    path = parser.parse_args(arguments).metrics
    metrics = read_json(path)
    try:
        print(metrics_table(metrics))
    except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise InputError(f"{path}: not the metrics of a run ({type(error).__name__}: {error})") from error


def metrics_table(metrics: Mapping[str, Any]) -> str:
    """A table with a line for chance and one for each score, and one below it with the intervals.

    Args:
        metrics: the content of metrics.json: videos, queries, for each score r1, r5, r10, r100 and sumr, and intervals,
            which earlier versions lack.

    >>> fused = {"r1": 12, "r5": 30, "r10": 45.5, "r100": 100, "sumr": 187.5}
    >>> print(metrics_table({"videos": 50, "queries": 9, "fused": fused}))
    9 captions, 50 videos      R@1    R@5   R@10  R@100   SumR
    chance                     2.0   10.0   20.0  100.0  132.0
    fused                     12.0   30.0   45.5  100.0  187.5
    """
    scores = [name for name in metrics if isinstance(metrics[name], Mapping) and "sumr" in metrics[name]]
    intervals = metrics.get("intervals") or {}
    rows = {"chance": [f"{value:.1f}" for value in chance(metrics["videos"])]}
    for name in [*(name for name in scores if name != "fused"), "fused"]:
        rows[name] = [f"{metrics[name][key]:.1f}" for key in RECALLS]
    title = f"{metrics['queries']} captions, {metrics['videos']} videos"
    width, cell = len(title) + 2, 13 if intervals else 7
    lines = [f"{title:<{width}}" + "".join(f"{label:>{cell}}" for label in RECALLS.values())]
    for name, values in rows.items():
        lines.append(f"{name:<{width}}" + "".join(f"{value:>{cell}}" for value in values))
        if name in intervals:
            spans = (f"{low:.1f}-{high:.1f}" for low, high in (intervals[name][key] for key in RECALLS))
            label = f"  {intervals['about']['level']:.0%} interval"
            lines.append(f"{label:<{width}}" + "".join(f"{span:>{cell}}" for span in spans))
    return "\n".join(lines)


def chance(videos: int) -> list[float]:
    """Recalls in percent of a random ranking of the videos, and their sum."""
    recalls = [min(100.0, 100.0 * k / videos) for k in RECALL_AT]
    return [*recalls, sum(recalls)]


if __name__ == "__main__":
    run_command(main)
