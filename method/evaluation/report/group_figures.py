"""Figures of groups of captions and of single captions; each title states the finding.

They contain no caption texts and no ids, which may need glyphs that the font lacks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from method.evaluation.report.breakdown import Breakdown
from method.evaluation.report.failures import Timelines
from method.evaluation.report.statistics import Group
from method.evaluation.report.theme import Theme, add_legend, draw_bars, new_figure, score_styles, set_title

_ENOUGH_CAPTIONS = 30  # smaller bins are not compared in titles


def group_figure(breakdown: Breakdown, theme: Theme) -> Figure:
    """SumR of each group of captions, by score."""
    figure = new_figure()
    axes = figure.add_subplot()
    groups = breakdown.groups
    names = list(next(group for group in groups if group.captions).sumr)
    styles = score_styles(names, theme)
    for index, name in enumerate(names):
        heights = [group.sumr.get(name, 0.0) for group in groups]
        errors = [group.error.get(name, 0.0) for group in groups]
        draw_bars(axes, index, len(names), heights, styles[name].color, name, errors, theme.text)
    axes.set_xticks(range(len(groups)), [f"{group.label}\n{group.captions:,}" for group in groups])
    axes.tick_params(axis="x", labelsize=10 if len(groups) < 8 else 8)
    axes.set(xlabel=f"{breakdown.unit}; below, captions in the bin", ylabel="SumR (0 to 400)", ylim=(0, None))
    axes.grid(False, axis="x")
    add_legend(figure)
    set_title(axes, _group_finding(groups, names[-1], breakdown))
    return figure


def _group_finding(groups: Sequence[Group], name: str, breakdown: Breakdown) -> str:
    subject = f"{name.capitalize()} SumR by {breakdown.title}"
    if sum(group.captions > 0 for group in groups) == 1:
        return f"{subject}: all captions are in one bin"
    large = [group for group in groups if group.captions >= _ENOUGH_CAPTIONS]
    if len(large) < 2:
        return f"{subject}: fewer than two bins have {_ENOUGH_CAPTIONS} captions"
    best, worst = (pick(large, key=lambda group: group.sumr[name]) for pick in (max, min))
    extremes = f"{best.sumr[name]:.0f} at {best.label}, {worst.sumr[name]:.0f} at {worst.label}"
    if best.sumr[name] - worst.sumr[name] < best.error[name] + worst.error[name]:
        return f"{subject}: no clear difference ({extremes})"
    return f"{subject}: {extremes}"


def timeline_figure(right: Timelines, winner: Timelines, rank: int, theme: Theme) -> Figure:
    """Frame scores of one caption in its own video and in the one ranked first, on the same scale."""
    figure = new_figure(height=4.8)
    top = figure.add_subplot(2, 1, 1)
    _draw_timelines(top, right, f"Right video, rank {rank:,}", theme)
    _draw_timelines(figure.add_subplot(2, 1, 2, sharey=top), winner, "Winning video, rank 1", theme)
    add_legend(figure)
    return figure


def _draw_timelines(axes: Axes, video: Timelines, name: str, theme: Theme) -> None:
    end, unit = (video.duration, " s") if video.duration else (100.0, "%")
    if video.true is not None:
        first, last = (fraction * end for fraction in video.true.span)
        axes.axvspan(first, last, color=theme.true, alpha=0.45, linewidth=0, label="true moment")
    styles = score_styles(video.scores, theme)
    for score, scores_T in video.scores.items():
        centres_T = (np.arange(len(scores_T)) + 0.5) / len(scores_T) * end
        marker = "o" if len(scores_T) == 1 else None  # a line through one point would be invisible
        axes.plot(centres_T, scores_T, color=styles[score].color, label=score, marker=marker, **styles[score].line)
    found = video.predicted
    axes.axvspan(found.start * end, found.end * end, ymax=0.035, color=theme.outcomes[0], label="predicted moment")
    axes.set(xlabel="seconds" if video.duration else "% of the video", ylabel="cosine", xlim=(0, end))
    set_title(axes, f"{name}: best frame at {found.peak * end:.0f}{unit}, score {found.score:.2f}")
