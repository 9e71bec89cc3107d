"""The look of the figures of a report, in a light and a dark theme.

The colours follow the palette of Okabe and Ito, distinguishable with any kind of colour vision; scores also differ in
line style.
"""

from __future__ import annotations

import base64
import io
import textwrap
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from method.evaluation.metrics import FUSED
from method.runtime.files import write_bytes

_DOTS_PER_INCH = 160
_TITLE_CHARACTERS = 66
# The fused line is drawn below, so that branches that agree with it stay visible.
_FUSED_LINE: dict[str, Any] = {"linestyle": "-", "linewidth": 2.6, "zorder": 2.1}
_BRANCH_LINES: tuple[dict[str, Any], ...] = (
    {"linestyle": (0, (5, 2)), "linewidth": 1.5, "zorder": 2.2},
    {"linestyle": (0, (1.5, 1.2)), "linewidth": 1.7, "zorder": 2.3},
    {"linestyle": (0, (6, 1.5, 1.5, 1.5)), "linewidth": 1.6, "zorder": 2.4},
    {"linestyle": (0, (3, 1)), "linewidth": 1.5, "zorder": 2.5},
)
_FIRST_BRANCHES = ("action", "object")  # have the first two styles whatever other branches a model has


@dataclass(frozen=True)
class Theme:
    """Colours of the background, of text, of grid lines, of branches and of the outcomes of fusion."""

    name: str
    background: str
    text: str
    faint: str
    branches: tuple[str, ...]
    outcomes: tuple[str, str, str, str]
    true: str


LIGHT = Theme(
    "light",
    background="#ffffff",
    text="#1c1e21",
    faint="#d4d7dc",
    branches=("#d55e00", "#0072b2", "#b8679a", "#7d7a00"),
    outcomes=("#009e73", "#56b4e9", "#9298a3", "#d55e00"),
    true="#f0e442",
)
DARK = Theme(
    "dark",
    background="#1b1d21",
    text="#e8eaed",
    faint="#454a52",
    branches=("#e69f00", "#56b4e9", "#e08fc0", "#c3cf5a"),
    outcomes=("#1bc795", "#56b4e9", "#6d737c", "#f08030"),
    true="#8a8420",
)


@dataclass(frozen=True)
class ScoreStyle:
    """Colour and line of one score; `line` holds arguments of `Axes.plot`."""

    color: str
    line: dict[str, Any]


def score_styles(names: Iterable[str], theme: Theme) -> dict[str, ScoreStyle]:
    """The style of each score: 'action', 'object' and 'fused' have their own, other branches take the next free ones.

    Beyond four branches the styles repeat.
    """
    names = list(names)
    others = [name for name in names if name not in (*_FIRST_BRANCHES, FUSED)]
    taken = 2 if set(names) & set(_FIRST_BRANCHES) else 0
    number = {name: index for index, name in enumerate(_FIRST_BRANCHES)}
    number |= {name: taken + index for index, name in enumerate(others)}
    count = len(theme.branches)
    return {
        name: ScoreStyle(theme.text, _FUSED_LINE)
        if name == FUSED
        else ScoreStyle(theme.branches[number[name] % count], _BRANCH_LINES[number[name] % count])
        for name in names
    }


def applied(theme: Theme) -> AbstractContextManager[None]:
    """Make and save figures in a theme, whatever the user's Matplotlib settings are."""
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
        "figure.facecolor": theme.background,
        "savefig.facecolor": theme.background,
        "savefig.dpi": _DOTS_PER_INCH,
        "axes.facecolor": theme.background,
        "axes.edgecolor": theme.text,
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.titlecolor"), theme.text),
        **dict.fromkeys(("xtick.color", "ytick.color"), theme.text),
    }
    return matplotlib.style.context(["default", settings])


def new_figure(height: float = 4.0) -> Figure:
    """An empty figure with constrained layout; the height is in inches."""
    return Figure(figsize=(6.6, height), layout="constrained")


def add_legend(figure: Figure, columns: int = 6, **style: Any) -> None:
    """Add one legend below the figure, of what the first axes show."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(columns, len(labels)), **style)


def set_title(axes: Axes, title: str) -> None:
    """Set a title that states the finding; long titles wrap."""
    axes.set_title(textwrap.fill(title, _TITLE_CHARACTERS))


def draw_bars(
    axes: Axes,
    index: int,
    count: int,
    heights: Sequence[float],
    color: str,
    label: str,
    errors: Sequence[float] | None = None,
    error_color: str | None = None,
) -> None:
    """Draw series number `index` of `count` grouped bar series, with error bars of +- `errors`."""
    width = 0.8 / count
    x = np.arange(len(heights)) + (index - (count - 1) / 2) * width
    style = {"elinewidth": 0.9, "ecolor": error_color, "alpha": 0.8}
    axes.bar(x, heights, width * 0.92, color=color, label=label, yerr=errors, error_kw=style)


@dataclass(frozen=True)
class Picture:
    """A figure in the page: its file name, its text alternative, and base64 PNG for the light and the dark theme."""

    name: str
    alt: str
    light: str
    dark: str


def draw(path: Path, alt: str, make: Callable[[Theme], Figure]) -> Picture:
    """Draw a figure in both themes and write the light one to `path`; its titles are added to `alt`."""
    light, _ = _png(make, LIGHT)
    dark, titles = _png(make, DARK)
    write_bytes(path, lambda file: file.write(light))
    encoded = (base64.b64encode(png).decode() for png in (light, dark))
    return Picture(path.name, ". ".join([alt, *titles]) + ".", *encoded)


def _png(make: Callable[[Theme], Figure], theme: Theme) -> tuple[bytes, list[str]]:
    """A figure as PNG, and its titles."""
    png = io.BytesIO()
    with applied(theme):
        figure = make(theme)
        figure.savefig(png, format="png")
    return png.getvalue(), [" ".join(axes.get_title(loc="left").split()) for axes in figure.axes]
