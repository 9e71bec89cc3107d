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

from method.config.parser import Parser, user_path
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
        if "multi_gt" in metrics:
            print(f"\n{multi_gt_table(metrics['multi_gt'])}")
        if "vcmr" in metrics:
            print(f"\n{vcmr_table(metrics['vcmr'])}")
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
    intervals = metrics.get("intervals") or {}
    rows = {"chance": chance(metrics["videos"])}
    rows |= {name: [metrics[name][key] for key in RECALLS] for name in _scores(metrics)}
    spans = {name: [intervals[name][key] for key in RECALLS] for name in rows if name in intervals}
    title = f"{metrics['queries']} captions, {metrics['videos']} videos"
    level = f"  {intervals['about']['level']:.0%} interval" if spans else ""
    return _table(title, list(RECALLS.values()), rows, spans, level)


def multi_gt_table(metrics: Mapping[str, Any]) -> str:
    """A table with a line for each score, of `multi_gt` in metrics.json: several right videos for a caption."""
    columns = {"R@1": "r1", "R@5": "r5", "R@10": "r10", "R@100": "r100", "SumR": "sumr", "hit@1": "hit1"}
    columns |= {"hit@10": "hit10", "MedR": "medr"}
    rows = {name: [metrics[name][key] for key in columns.values()] for name in _scores(metrics)}
    return _table(f"several right videos, {metrics['captions']} captions", list(columns), rows)


def vcmr_table(metrics: Mapping[str, Any]) -> str:
    """A table with a line for each IoU, of `vcmr` in metrics.json: video corpus moment retrieval.

    >>> recalls = {f"r{k}_iou{least}": 5.0 * k ** 0.5 for k in (1, 10, 100) for least in (0.3, 0.5, 0.7)}
    >>> print(vcmr_table({"captions": 9, **recalls}))
    moments of all videos, 9 captions      R@1   R@10  R@100
    IoU 0.3                                5.0   15.8   50.0
    IoU 0.5                                5.0   15.8   50.0
    IoU 0.7                                5.0   15.8   50.0
    """
    counts, least = (1, 10, 100), (0.3, 0.5, 0.7)
    rows = {f"IoU {value}": [metrics[f"r{k}_iou{value}"] for k in counts] for value in least}
    return _table(f"moments of all videos, {metrics['captions']} captions", [f"R@{k}" for k in counts], rows)


def _scores(metrics: Mapping[str, Any]) -> list[str]:
    names = [name for name in metrics if isinstance(metrics[name], Mapping) and "sumr" in metrics[name]]
    return [*(name for name in names if name != "fused"), "fused"]


def _table(
    title: str,
    columns: Sequence[str],
    rows: Mapping[str, Sequence[float]],
    spans: Mapping[str, Sequence[tuple[float, float]]] | None = None,
    level: str = "",
) -> str:
    """Rows of values; below each row its `spans`, labelled `level`, if there are any."""
    width, cell = len(title) + 2, 13 if spans else 7
    lines = [f"{title:<{width}}" + "".join(f"{name:>{cell}}" for name in columns)]
    for name, values in rows.items():
        lines.append(f"{name:<{width}}" + "".join(f"{value:{cell}.1f}" for value in values))
        if spans and name in spans:
            cells = (f"{low:.1f}-{high:.1f}" for low, high in spans[name])
            lines.append(f"{level:<{width}}" + "".join(f"{span:>{cell}}" for span in cells))
    return "\n".join(lines)


def chance(videos: int) -> list[float]:
    """Recalls in percent of a random ranking of the videos, and their sum."""
    recalls = [min(100.0, 100.0 * k / videos) for k in RECALL_AT]
    return [*recalls, sum(recalls)]


if __name__ == "__main__":
    run_command(main)
