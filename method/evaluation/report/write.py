"""Write the report of an evaluation: a self-contained page, and its figures and tables as files beside it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from method.evaluation.bounds import ABOUT_BRANCHES, ABOUT_DUPLICATES, best_branch, duplicates
from method.evaluation.intervals import RESAMPLES, SEED
from method.evaluation.metrics import FUSED, distinct_scores, retrieval_metrics
from method.evaluation.moment_metrics import CORPUS_RECALL_AT, IOUS, moment_metrics, predict_moments
from method.evaluation.moments import durations
from method.evaluation.noise import COVERS
from method.evaluation.report.breakdown import Breakdown, breakdowns
from method.evaluation.report.cost import costs
from method.evaluation.report.failures import Failure, timelines, worst_captions
from method.evaluation.report.figures import fusion_axes, fusion_figure, histogram_figure, recall_figure
from method.evaluation.report.group_figures import group_figure, timeline_figure
from method.evaluation.report.input import ReportInput
from method.evaluation.report.statistics import OUTCOMES, agreement, branch_ranks, fusion_outcomes
from method.evaluation.report.tables import (
    caption_table,
    cost_table,
    failure_table,
    group_table,
    rank_tables,
    timeline_table,
)
from method.evaluation.report.theme import DARK, LIGHT, Picture, Theme, draw, score_styles
from method.runtime.disk import move
from method.runtime.files import write_text

PAGE = "index.html"
WORST = 12
WINNERS = 3
WITH_TIMELINES = 4
_HERE = Path(__file__).parent


def write_report(run: Path, given: ReportInput, vcmr: Mapping[str, Any] | None = None) -> Path:
    """Write `report/` into the folder of a run, whole or not at all; returns the page.

    An earlier report is replaced. The model is put into evaluation mode. `vcmr`: its metrics, where moments are known.
    """
    given.model.eval()
    folder, partial = run / "report", run / ".report.part"
    shutil.rmtree(partial, ignore_errors=True)  # left by a killed process
    try:
        _write_page(_Writer(partial, given, vcmr))
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if folder.exists():
        shutil.rmtree(folder)
    move(partial, folder)
    return folder / PAGE


def _write_page(writer: _Writer) -> None:
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["amount"] = amount
    write_text(writer.folder / PAGE, environment.get_template("page.html.jinja").render(writer.parts()))


def amount(value: float) -> str:
    """Format a number for people.

    >>> amount(7654321.0), amount(12.3456), amount(0.012345)
    ('7,654,321', '12.3', '0.0123')
    """
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.3g}"


class _Writer:
    """Computes the content of a report and writes its figures and tables on the way."""

    def __init__(self, folder: Path, given: ReportInput, vcmr: Mapping[str, Any] | None) -> None:
        self.folder = folder
        self.given = given
        self.vcmr = vcmr
        self.evaluation = given.evaluation
        self.captions = given.evaluation.queries.captions
        self.moments = given.moments
        self.ranks = distinct_scores(given.evaluation.ranks)
        self.videos = len(given.evaluation.video_ids)

    def parts(self) -> dict[str, Any]:
        """The variables of the page's template."""
        for name, text in rank_tables(self.ranks, self.videos).items():
            write_text(self.folder / name, text)
        predicted = predict_moments(self.evaluation, self.moments.keys())
        write_text(self.folder / "captions.csv", caption_table(self.captions, self.ranks, predicted, self.moments))
        cost = costs(self.given.model, self.evaluation, self.given.split)
        write_text(self.folder / "cost.csv", cost_table(cost))
        parts = {
            **self._header(),
            "recall": self.picture(
                "recall_curve",
                "Line chart: recall over K, logarithmic, for each score and for chance",
                lambda theme: recall_figure(self.ranks, self.videos, theme),
            ),
            "histogram": self.picture(
                "rank_histogram",
                "Bar chart: percent of the captions whose video has a rank in each bin, for each score",
                lambda theme: histogram_figure(self.ranks, self.videos, theme),
            ),
            "fusion": self._fusion() if len(self.ranks) > 1 else None,
            "breakdowns": self._breakdowns(),
            **self._failures(),
            "costs": cost,
        }
        return {**parts, "files": sorted(path.name for path in self.folder.iterdir())}

    def _header(self) -> dict[str, Any]:
        given = self.given
        return {
            "dataset": given.dataset,
            "checkpoint": str(given.checkpoint),
            "epoch": given.epoch,
            "split": given.split.name,
            "made": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
            "videos": self.videos,
            "captions": len(self.captions),
            **self._noise(),
            "weights": self.evaluation.settings.weights,
            "themes": [(theme, score_styles(self.ranks, theme)) for theme in (LIGHT, DARK)],
            "metrics": {name: retrieval_metrics(ranks_Q) for name, ranks_Q in self.ranks.items()},
            "moments": moment_metrics(self.evaluation, self.moments) if self.moments else None,
            "vcmr": self.vcmr,
            "multi_gt": self._multi_gt(),
            "ious": IOUS,
            "corpus_recall_at": CORPUS_RECALL_AT,
        }

    def _noise(self) -> dict[str, Any]:
        found, oracle = duplicates(self.captions), best_branch(self.ranks)
        return {
            "intervals": self.evaluation.intervals,
            "covers": COVERS,
            "resamples": RESAMPLES,
            "seed": SEED,
            "limits": {
                **({"better branch": oracle} if oracle else {}),
                **({"ceiling": found.ceiling} if found.captions else {}),
            },
            "duplicates": found,
            "about_branches": ABOUT_BRANCHES,
            "about_duplicates": ABOUT_DUPLICATES,
        }

    def _multi_gt(self) -> dict[str, Any] | None:
        right = self.evaluation.right_ranks
        if right is None:
            return None
        return {
            "metrics": {name: right.metrics[name] for name in self.ranks},
            "captions": len(right.first),
            "left_out": right.labels.left_out,
            "several": int((np.diff(np.append(right.first, len(right.ranks[FUSED]))) > 1).sum()),
        }

    def picture(self, name: str, alt: str, make: Callable[[Theme], Figure]) -> Picture:
        return draw(self.folder / f"{name}.png", alt, make)

    def _fusion(self) -> dict[str, Any]:
        outcomes = fusion_outcomes(self.ranks)
        (x, _), (y, _) = fusion_axes(self.ranks)
        return {
            "picture": self.picture(
                "fusion",
                f"Scatter plot: {x} against {y} of each caption, both logarithmic, coloured by the effect of fusion",
                lambda theme: fusion_figure(self.ranks, self.videos, theme),
            ),
            "branches": list(branch_ranks(self.ranks)),
            "outcomes": [(name, int((outcomes == index).sum())) for index, name in enumerate(OUTCOMES)],
            "agreement": [(k, agreement(self.ranks, k)) for k in (1, 10) if k < self.videos],
        }

    def _breakdowns(self) -> list[tuple[Breakdown, Picture | None]]:
        split = self.given.split
        branch = next(iter(split.frames))
        stream = f"the {branch} branch's stream"
        shown = []
        for breakdown in breakdowns(self.ranks, self.captions, split.frames[branch], stream, self.moments):
            picture = None
            if breakdown.groups:
                write_text(self.folder / f"{breakdown.name}.csv", group_table(breakdown))
                picture = self.picture(
                    f"sumr_by_{breakdown.name}",
                    f"Bar chart: SumR by {breakdown.title}, for each score",
                    lambda theme, breakdown=breakdown: group_figure(breakdown, theme),  # type: ignore[misc]
                )
            shown.append((breakdown, picture))
        return shown

    def _failures(self) -> dict[str, Any]:
        failures = worst_captions(self.evaluation, WORST, WINNERS)
        write_text(self.folder / "worst_captions.csv", failure_table(failures))
        with_timelines = [
            (failure, self._timelines(number, failure)) for number, failure in enumerate(failures[:WITH_TIMELINES], 1)
        ]
        return {"failures": failures, "timelines": with_timelines}

    def _timelines(self, number: int, failure: Failure) -> Picture:
        seconds = durations(self.captions, self.moments)
        right, winner = (
            timelines(self.evaluation, failure.index, video_id, self.moments, seconds)
            for video_id in (failure.caption.video_id, failure.winners[0].video_id)
        )
        write_text(self.folder / f"timelines_{number}.csv", timeline_table(failure.caption, (right, winner)))
        return self.picture(
            f"timelines_{number}",
            "Line charts: frame scores of the right and of the winning video for the caption, by score",
            lambda theme: timeline_figure(right, winner, failure.rank, theme),
        )
