"""The intervals and limits of an evaluation as metrics.json and the log have them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from method.evaluation.intervals import LEVEL, RESAMPLES, SEED, Interval
from method.evaluation.metrics import RECALLS, distinct_scores
from method.evaluation.ranking import Evaluation

COVERS = (
    "percentile bootstrap over captions, whole videos drawn with all their captions: how far the recalls would differ "
    "with other queries of the same kind, for these weights and candidate videos; differences between training seeds "
    "come on top"
)


def interval_results(evaluation: Evaluation) -> dict[str, Any]:
    """The intervals for metrics.json, with how they were computed; nothing where a single video has captions."""
    if evaluation.intervals is None:
        return {}
    videos = len({caption.video_id for caption in evaluation.queries.captions})
    about = {"what": COVERS, "level": LEVEL, "resamples": RESAMPLES, "seed": SEED, "videos": videos}
    return {"intervals": {"about": about, **{name: dict(own) for name, own in evaluation.intervals.items()}}}


def noise_lines(evaluation: Evaluation, limits: Mapping[str, Any]) -> Iterator[str]:
    """Lines for the log: the intervals of the main score, and the limits of recall, see `method.evaluation.bounds`."""
    if evaluation.intervals is not None:
        *_, main = distinct_scores(evaluation.ranks)
        yield f"{main:6} {_listed(evaluation.intervals[main])}  (95% intervals over captions, not over training seeds)"
    if "best_branch" in limits:
        yield f"the better branch for each caption: {_listed(limits['best_branch'])}"
    ceiling = limits["duplicates"]
    if ceiling["captions"]:
        what = f"{ceiling['captions']} captions describe several videos word for word"
        yield f"{what}; a ranking by words alone has at most {_listed(ceiling)}"


def _listed(values: Mapping[str, Any]) -> str:
    return "  ".join(f"{label} {_shown(values[key])}" for key, label in RECALLS.items())


def _shown(value: float | Interval) -> str:
    return f"{value:.1f}" if isinstance(value, int | float) else f"{value[0]:.1f}-{value[1]:.1f}"
