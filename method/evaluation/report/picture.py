"""Figures as pictures: in the page for light and for dark ground, and as PNG files beside it."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from method.evaluation.report.theme import DARK, LIGHT, Theme, applied
from method.runtime.files import write_bytes


@dataclass(frozen=True)
class Picture:
    """A figure by the name of its file, what it says in words, and PNG as base64 for light and for dark ground."""

    name: str
    alt: str
    light: str
    dark: str


def draw(path: Path, alt: str, make: Callable[[Theme], Figure]) -> Picture:
    """Draw a figure for both grounds and write the light one to `path`; its titles are added to `alt`."""
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
