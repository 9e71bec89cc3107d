"""The figures of ranks in a report; each title says what is found.

Letters: Q captions, V videos.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from method.evaluation.metrics import RECALL_AT, Ranks
from method.evaluation.ranking import Evaluation
from method.evaluation.report.statistics import (
    OUTCOMES,
    fusion_outcomes,
    rank_bins,
    rank_histogram,
    recall_curve,
    shown_scores,
)
from method.evaluation.report.theme import LIGHT, LINES, Theme, add_legend, applied, draw_bars, new_figure, set_title

_LABELLED_RANKS = (1, 5, 10, 100, 1000, 10000, 100000)


def recall_figure(ranks: Mapping[str, Ranks], videos: int, theme: Theme) -> Figure:
    """Recall over K of each score, and what chance would give."""
    figure = new_figure()
    axes = figure.add_subplot()
    k_V = np.arange(1, videos + 1)
    axes.plot(k_V, 100 * k_V / videos, color=theme.faint, linewidth=1.6, label="chance")
    for name, ranks_Q in ranks.items():
        axes.plot(k_V, recall_curve(ranks_Q, videos), color=theme.scores[name], label=name, **LINES[name])
    _rank_axis(axes, "x", videos)
    axes.set(xlabel=f"K, of {videos:,} videos", ylabel="captions (%)", ylim=(0, 102))
    add_legend(figure)
    k = max(k for k in RECALL_AT if k <= max(10, videos // 10) or k == 1)
    found = ", ".join(f"{name} {_recall(ranks_Q, k):.1f}%" for name, ranks_Q in reversed(list(ranks.items())))
    set_title(axes, f"The right video is among the first {k} for: {found}" if k > 1 else f"It comes first for: {found}")
    return figure


def histogram_figure(ranks: Mapping[str, Ranks], videos: int, theme: Theme) -> Figure:
    """How the ranks of the right videos are spread, by score."""
    figure = new_figure()
    axes = figure.add_subplot()
    bins = rank_bins(videos)
    for place, (name, ranks_Q) in enumerate(ranks.items()):
        shares = [100 * count / len(ranks_Q) for count in rank_histogram(ranks_Q, bins)]
        draw_bars(axes, place, len(ranks), shares, theme.scores[name], name)
    labels = [f"{first}" if first == last else f"{first}–{last}" for first, last in bins]
    axes.set_xticks(
        range(len(bins)), labels, rotation=30 if len(bins) > 7 else 0, ha="right" if len(bins) > 7 else "center"
    )
    axes.set(xlabel="rank of the right video", ylabel="captions (%)")
    axes.grid(False, axis="x")
    add_legend(figure)
    name, ranks_Q = list(ranks.items())[-1]
    half = int(np.quantile(ranks_Q, 0.5, method="inverted_cdf"))
    share = 100 * float((ranks_Q == 1).mean())
    set_title(
        axes, f"By the {name} score half of the captions have their video within rank {half:,}, {share:.1f}% first"
    )
    return figure


def fusion_figure(ranks: Mapping[str, Ranks], videos: int, theme: Theme) -> Figure:
    """Rank under the action score against rank under the object score, coloured by what fusing did."""
    figure = new_figure(height=5.2)
    axes = figure.add_subplot()
    outcome_Q = fusion_outcomes(ranks["action"], ranks["object"], ranks["fused"])
    # Ranks are whole numbers: moved a little, by the same amounts each time, so that equal ones do not hide each other.
    jitter_2Q = np.exp(np.random.default_rng(0).uniform(-0.09, 0.09, (2, len(outcome_Q))))
    size = float(np.clip(6000 / len(outcome_Q), 2, 30))
    for place, name in enumerate(OUTCOMES):
        own = outcome_Q == place
        axes.scatter(
            (ranks["action"] * jitter_2Q[0])[own],
            (ranks["object"] * jitter_2Q[1])[own],
            s=size,
            color=theme.outcomes[place],
            alpha=0.7,
            linewidths=0,
            label=f"{name} ({int(own.sum()):,})",
            zorder=3 if name in (OUTCOMES[0], OUTCOMES[3]) else 2,
        )
    axes.plot([1, videos], [1, videos], color=theme.text, linewidth=0.8, alpha=0.6)
    for which in ("x", "y"):
        _rank_axis(axes, which, videos)
    axes.set(xlabel="rank under the action score", ylabel="rank under the object score")
    add_legend(figure, columns=2, title="the fused rank is", markerscale=float(np.sqrt(30 / size)))
    better, worse = (100 * float((outcome_Q == place).mean()) for place in (0, 3))
    set_title(
        axes, f"Fusing beats both branches for {better:.1f}% of the captions and is worse than both for {worse:.1f}%"
    )
    return figure


def figures_for_tensorboard(evaluation: Evaluation) -> dict[str, Figure]:
    """The figures that need nothing but ranks, by name."""
    shown, videos = shown_scores(evaluation.ranks), len(evaluation.video_ids)
    with applied(LIGHT):
        figures = {
            "recall_curve": recall_figure(shown, videos, LIGHT),
            "rank_histogram": histogram_figure(shown, videos, LIGHT),
        }
        if len(shown) == 3:
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
