"""How the figures of a report look, on light and on dark ground.

The colours are those of Okabe and Ito, which people with any kind of colour vision tell apart; scores also differ in
line style.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_DOTS_PER_INCH = 160
_TITLE_CHARACTERS = 66
LINES: dict[str, Any] = {
    "action": {"linestyle": (0, (5, 2)), "linewidth": 1.5, "zorder": 2.2},
    "object": {"linestyle": (0, (1.5, 1.2)), "linewidth": 1.7, "zorder": 2.3},
    "fused": {"linestyle": "-", "linewidth": 2.6, "zorder": 2.1},  # below, so that branches that agree with it show
}


@dataclass(frozen=True)
class Theme:
    """Colours of one ground: of text, of what should stay behind, of each score and of the outcomes of fusing."""

    name: str
    ground: str
    text: str
    faint: str
    scores: dict[str, str]
    outcomes: tuple[str, str, str, str]
    true: str


LIGHT = Theme(
    "light",
    ground="#ffffff",
    text="#1c1e21",
    faint="#d4d7dc",
    scores={"action": "#d55e00", "object": "#0072b2", "fused": "#1c1e21"},
    outcomes=("#009e73", "#56b4e9", "#9298a3", "#d55e00"),
    true="#f0e442",
)
DARK = Theme(
    "dark",
    ground="#1b1d21",
    text="#e8eaed",
    faint="#454a52",
    scores={"action": "#e69f00", "object": "#56b4e9", "fused": "#e8eaed"},
    outcomes=("#1bc795", "#56b4e9", "#6d737c", "#f08030"),
    true="#8a8420",
)


def applied(theme: Theme) -> AbstractContextManager[None]:
    """Within this, figures are made and saved in a theme, whatever the user's own settings of Matplotlib are."""
    settings: Any = {
        "font.size": 10,
        "axes.titlesize": 10.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.titlepad": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.grid": True,
        "grid.color": theme.faint,
        "grid.linewidth": 0.6,
        "legend.frameon": False,
        "figure.dpi": _DOTS_PER_INCH,
        "figure.facecolor": theme.ground,
        "savefig.facecolor": theme.ground,
        "savefig.dpi": _DOTS_PER_INCH,
        "axes.facecolor": theme.ground,
        "axes.edgecolor": theme.text,
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.titlecolor"), theme.text),
        **dict.fromkeys(("xtick.color", "ytick.color"), theme.text),
    }
    return matplotlib.style.context(["default", settings])


def new_figure(height: float = 4.0) -> Figure:
    """An empty figure that makes room for its labels; the height is in inches."""
    return Figure(figsize=(6.6, height), layout="constrained")


def add_legend(figure: Figure, columns: int = 6, **style: Any) -> None:
    """Name what the first axes show, below the figure where it hides nothing; each name once."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(columns, len(labels)), **style)


def set_title(axes: Axes, title: str) -> None:
    """Say what is found; long titles go on in a second line."""
    axes.set_title(textwrap.fill(title, _TITLE_CHARACTERS))


def draw_bars(
    axes: Axes,
    place: int,
    count: int,
    heights: Sequence[float],
    color: str,
    label: str,
    errors: Sequence[float] | None = None,
    error_color: str | None = None,
) -> None:
    """Bars of one of `count` series side by side, the first in `place` 0, with intervals of +- `errors`."""
    width = 0.8 / count
    at = np.arange(len(heights)) + (place - (count - 1) / 2) * width
    style = {"elinewidth": 0.9, "ecolor": error_color, "alpha": 0.8}
    axes.bar(at, heights, width * 0.92, color=color, label=label, yerr=errors, error_kw=style)
