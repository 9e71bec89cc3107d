"""The figures of groups of captions and of single ones in a report; each title says what is found.

They hold no text of captions or ids, which may need glyphs that no font here has.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from method.evaluation.report.breakdown import Breakdown
from method.evaluation.report.failures import Timelines
from method.evaluation.report.statistics import Group
from method.evaluation.report.theme import LINES, Theme, add_legend, draw_bars, new_figure, set_title

_ENOUGH_CAPTIONS = 30  # what smaller bins show is not called a finding


def group_figure(breakdown: Breakdown, theme: Theme) -> Figure:
    """SumR of each group of captions, by score."""
    figure = new_figure()
    axes = figure.add_subplot()
    groups = breakdown.groups
    names = list(next(group for group in groups if group.captions).sumr)
    for place, name in enumerate(names):
        heights = [group.sumr.get(name, 0.0) for group in groups]
        errors = [group.error.get(name, 0.0) for group in groups]
        draw_bars(axes, place, len(names), heights, theme.scores[name], name, errors, theme.text)
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
    """Frame scores of one caption in its own video and in the one ranked first, on one scale."""
    figure = new_figure(height=4.8)
    above = figure.add_subplot(2, 1, 1)
    _draw_timelines(above, right, f"Right video, rank {rank:,}", theme)
    _draw_timelines(figure.add_subplot(2, 1, 2, sharey=above), winner, "Winning video, rank 1", theme)
    add_legend(figure)
    return figure


def _draw_timelines(axes: Axes, video: Timelines, name: str, theme: Theme) -> None:
    end, unit = (video.duration, " s") if video.duration else (100.0, "%")
    if video.true is not None:
        first, last = (share * end for share in video.true.span)
        axes.axvspan(first, last, color=theme.true, alpha=0.45, linewidth=0, label="true moment")
    for score, scores_T in video.scores.items():
        centres_T = (np.arange(len(scores_T)) + 0.5) / len(scores_T) * end
        axes.plot(centres_T, scores_T, color=theme.scores[score], label=score, **LINES[score])
    found = video.found
    axes.axvspan(found.start * end, found.end * end, ymax=0.035, color=theme.outcomes[0], label="moment found")
    axes.set(xlabel="seconds" if video.duration else "% of the video", ylabel="cosine", xlim=(0, end))
    set_title(axes, f"{name}: its best frame, at {found.peak * end:.0f}{unit}, scores {found.score:.2f}")
