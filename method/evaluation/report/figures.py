"""Figures of ranks; each title states the finding.

Letters: Q captions, V videos.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from method.evaluation.metrics import FUSED, RECALL_AT, Ranks, distinct_scores
from method.evaluation.ranking import Evaluation
from method.evaluation.report.statistics import (
    OUTCOMES,
    branch_ranks,
    fusion_outcomes,
    rank_bins,
    rank_histogram,
    recall_curve,
)
from method.evaluation.report.theme import (
    LIGHT,
    Theme,
    add_legend,
    applied,
    draw_bars,
    new_figure,
    score_styles,
    set_title,
)

_LABELLED_RANKS = (1, 5, 10, 100, 1000, 10000, 100000)


def recall_figure(ranks: Mapping[str, Ranks], videos: int, theme: Theme) -> Figure:
    """Recall over K of each score and of a random order."""
    figure = new_figure()
    axes = figure.add_subplot()
    k_V = np.arange(1, videos + 1)
    axes.plot(k_V, 100 * k_V / videos, color=theme.faint, linewidth=1.6, label="chance")
    styles = score_styles(ranks, theme)
    for name, ranks_Q in ranks.items():
        axes.plot(k_V, recall_curve(ranks_Q, videos), color=styles[name].color, label=name, **styles[name].line)
    _rank_axis(axes, "x", videos)
    axes.set(xlabel=f"K, of {videos:,} videos", ylabel="captions (%)", ylim=(0, 102))
    add_legend(figure)
    k = max(k for k in RECALL_AT if k <= max(10, videos // 10) or k == 1)
    found = ", ".join(f"{name} {_recall(ranks_Q, k):.1f}%" for name, ranks_Q in reversed(list(ranks.items())))
    set_title(axes, f"The right video is among the first {k} for: {found}" if k > 1 else f"It comes first for: {found}")
    return figure


def histogram_figure(ranks: Mapping[str, Ranks], videos: int, theme: Theme) -> Figure:
    """Histogram of the ranks of the right videos, by score."""
    figure = new_figure()
    axes = figure.add_subplot()
    bins = rank_bins(videos)
    styles = score_styles(ranks, theme)
    for index, (name, ranks_Q) in enumerate(ranks.items()):
        percent = [100 * count / len(ranks_Q) for count in rank_histogram(ranks_Q, bins)]
        draw_bars(axes, index, len(ranks), percent, styles[name].color, name)
    labels = [f"{first}" if first == last else f"{first}–{last}" for first, last in bins]
    axes.set_xticks(
        range(len(bins)), labels, rotation=30 if len(bins) > 7 else 0, ha="right" if len(bins) > 7 else "center"
    )
    axes.set(xlabel="rank of the right video", ylabel="captions (%)")
    axes.grid(False, axis="x")
    add_legend(figure)
    name, ranks_Q = list(ranks.items())[-1]
    half = int(np.quantile(ranks_Q, 0.5, method="inverted_cdf"))
    first = 100 * float((ranks_Q == 1).mean())
    set_title(axes, f"{name.capitalize()} score: half of the captions rank their video {half:,} or better, "
              f"{first:.1f}% first")  # fmt: skip
    return figure


def fusion_axes(ranks: Mapping[str, Ranks]) -> tuple[tuple[str, Ranks], tuple[str, Ranks]]:
    """What the fusion figure compares, x then y, each with its name.

    The ranks under both branches of two; under the best branch for each caption and fused for more.
    """
    branches = branch_ranks(ranks)
    if len(branches) == 2:
        first, second = ((f"rank under the {name} score", ranks_Q) for name, ranks_Q in branches.items())
        return first, second
    best_Q = np.stack(list(branches.values())).min(0)
    return ("best rank under any single branch", best_Q), ("rank under the fused score", ranks[FUSED])


def fusion_figure(ranks: Mapping[str, Ranks], videos: int, theme: Theme) -> Figure:
    """Scatter plot of `fusion_axes`, coloured by what fusion did to each caption's rank."""
    figure = new_figure(height=5.2)
    axes = figure.add_subplot()
    outcome_Q = fusion_outcomes(ranks)
    (x_name, x_Q), (y_name, y_Q) = fusion_axes(ranks)
    # A fixed jitter, because integer ranks would hide each other.
    jitter_2Q = np.exp(np.random.default_rng(0).uniform(-0.09, 0.09, (2, len(outcome_Q))))
    size = float(np.clip(6000 / len(outcome_Q), 2, 30))
    for index, name in enumerate(OUTCOMES):
        own = outcome_Q == index
        axes.scatter(
            (x_Q * jitter_2Q[0])[own],
            (y_Q * jitter_2Q[1])[own],
            s=size,
            color=theme.outcomes[index],
            alpha=0.7,
            linewidths=0,
            label=f"{name} ({int(own.sum()):,})",
            zorder=3 if name in (OUTCOMES[0], OUTCOMES[3]) else 2,
        )
    axes.plot([1, videos], [1, videos], color=theme.text, linewidth=0.8, alpha=0.6)
    for which in ("x", "y"):
        _rank_axis(axes, which, videos)
    axes.set(xlabel=x_name, ylabel=y_name)
    add_legend(figure, columns=2, title="the fused rank is", markerscale=float(np.sqrt(30 / size)))
    better, worse = (100 * float((outcome_Q == index).mean()) for index in (0, 3))
    set_title(axes, f"Fusion beats every branch for {better:.1f}% of the captions and is worse than every branch for "
              f"{worse:.1f}%")  # fmt: skip
    return figure


def figures_for_tensorboard(evaluation: Evaluation) -> dict[str, Figure]:
    """The figures that need ranks only, by name."""
    shown, videos = distinct_scores(evaluation.ranks), len(evaluation.video_ids)
    with applied(LIGHT):
        figures = {
            "recall_curve": recall_figure(shown, videos, LIGHT),
            "rank_histogram": histogram_figure(shown, videos, LIGHT),
        }
        if len(shown) > 1:
            figures["fusion"] = fusion_figure(shown, videos, LIGHT)
    return figures


def _rank_axis(axes: Axes, which: str, videos: int) -> None:
    labelled = [rank for rank in _LABELLED_RANKS if rank < videos / 1.6] + [videos]
    if which == "x":
        axes.set_xscale("log")
        axes.set_xticks(labelled, [f"{rank:,}" for rank in labelled])
        axes.set_xticks([], minor=True)
        axes.set_xlim(0.85, max(videos * 1.1, 2))
    else:
        axes.set_yscale("log")
        axes.set_yticks(labelled, [f"{rank:,}" for rank in labelled])
        axes.set_yticks([], minor=True)
        axes.set_ylim(0.85, max(videos * 1.1, 2))


def _recall(ranks_Q: Ranks, k: int) -> float:
    return 100 * float((ranks_Q <= k).mean())
