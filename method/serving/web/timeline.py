"""Timelines of the web page as SVG, in a 1000 x 100 view box that the page stretches."""

from __future__ import annotations

from dataclasses import dataclass

from method.evaluation.moments import Moment
from method.serving.answer import Hit

WIDTH, HEIGHT = 1000.0, 100.0


@dataclass(frozen=True)
class Drawing:
    """A timeline: the path of its area, the band of the moment, and the x coordinate of the best frame."""

    area: str
    start: float
    width: float
    peak: float


def draw(hit: Hit, scale: tuple[float, float]) -> Drawing:
    """Draw a timeline; `scale` holds the scores at the bottom and the top, the same for all results of a query."""
    low, high = scale
    frames = len(hit.timeline)
    heights = [HEIGHT - HEIGHT * (score - low) / ((high - low) or 1.0) for score in hit.timeline]
    # Scores stand at frame centres; the curve is flat before the first and after the last.
    centres = [(frame + 0.5) / frames * WIDTH for frame in range(frames)]
    points = zip([0.0, *centres, WIDTH], [heights[0], *heights, heights[-1]], strict=True)
    line = " L".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return Drawing(f"M0,{HEIGHT:g} L{line} L{WIDTH:g},{HEIGHT:g} Z", *band(hit.moment), hit.moment.peak * WIDTH)


def band(moment: Moment) -> tuple[float, float]:
    """The band of a moment: its start and its width."""
    return moment.start * WIDTH, (moment.end - moment.start) * WIDTH


def clock(seconds: float) -> str:
    """Seconds as video players show them.

    >>> clock(7.4), clock(75), clock(3675)
    ('0:07', '1:15', '1:01:15')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
