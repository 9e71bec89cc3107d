"""Draw a search result as an SVG image, as in the README.

python method/search.py --eval_ckpt results/demo/a3prvr/first/model.ckpt --topk 3 --json "A red circle advances." \
    | python utils/draw_search.py > search.svg
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from method.runtime.errors import InputError, run_command
from method.serving.output import SCHEMA

WIDTH, ROW, TOP = 760, 62, 64
LEFT, RIGHT, CURVE = 170, WIDTH - 24, 38  # horizontal range and height of the timelines

# An explicit background keeps the image readable on dark pages that do not support prefers-color-scheme.
_STYLE = """
.page{fill:#ffffff;stroke:#d0d7de}.box{fill:#f6f8fa;stroke:#d0d7de}.ink{fill:#1f2328}.dim{fill:#59636e}
.curve{fill:#afb8c1}.moment{fill:#ffb224;fill-opacity:.38}.edge{stroke:#b35900;stroke-width:2}
@media (prefers-color-scheme:dark){.page{fill:#0d1117;stroke:#3d444d}.box{fill:#151b23;stroke:#3d444d}.ink{fill:#f0f6fc}
.dim{fill:#9198a1}.curve{fill:#656c76}.moment{fill:#ffb224;fill-opacity:.45}.edge{stroke:#ffb224}}
text{font:14px system-ui,-apple-system,"Segoe UI",sans-serif}.small{font-size:12px}
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Read a line of JSON from stdin and print the SVG."""
    argparse.ArgumentParser(description="Draw a search result, read as JSON from stdin, as SVG.").parse_args(arguments)
    try:
        answer = json.loads(sys.stdin.read())
    except ValueError as error:
        raise InputError(f"stdin: not a line of JSON ({error}), expected the output of search.py --json") from error
    if not isinstance(answer, dict) or answer.get("schema") != SCHEMA:
        raise InputError(f"stdin: expected the output of search.py --json, with schema {SCHEMA}")
    print(draw_search(answer))


def draw_search(answer: Mapping[str, Any]) -> str:
    """The SVG of a search result, with a timeline per video on a common scale.

    Args:
        answer: output of `method.serving.output.as_json`.
    """
    hits, text = answer["results"], escape(answer["query"]["text"])
    height = TOP + ROW * len(hits) + 10
    scores = [score for hit in hits for score in hit["timeline"]]
    scale = min(scores, default=0.0), max(scores, default=1.0)
    best = ", ".join(f"{escape(hit['video_id'])} ({_span(hit)})" for hit in hits)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
            f"<title>Search result for: {text}</title>",
            f"<desc>Best videos and moments of {answer['corpus']['videos']}: {best}</desc>",
            f"<style>{_STYLE}</style>",
            f'<rect class="page" x=".5" y=".5" width="{WIDTH - 1}" height="{height - 1}" rx="10"/>',
            f'<rect class="box" x="24" y="16" width="{WIDTH - 48}" height="34" rx="17"/>',
            f'<text class="ink" x="42" y="38">{text}</text>',
            *[_row(hit, TOP + ROW * number, scale) for number, hit in enumerate(hits)],
            "</svg>",
        ]
    )


def _row(hit: Mapping[str, Any], top: float, scale: tuple[float, float]) -> str:
    low, high = scale
    timeline, moment, bottom = hit["timeline"], hit["moment"], top + 6 + CURVE

    def x(fraction: float) -> float:
        return LEFT + fraction * (RIGHT - LEFT)

    def y(score: float) -> float:
        return bottom - 4 - (CURVE - 4) * (score - low) / ((high - low) or 1.0)

    frames = [((frame + 0.5) / len(timeline), score) for frame, score in enumerate(timeline)]
    points = [(0.0, timeline[0]), *frames, (1.0, timeline[-1])]
    line = " ".join(f"L{x(fraction):.1f},{y(score):.1f}" for fraction, score in points)
    start, end = x(moment["start"]), x(moment["end"])
    return "\n".join(
        [
            f'<text class="ink" x="24" y="{top + 22}">{hit["rank"]}  {escape(hit["video_id"])}</text>',
            f'<text class="dim small" x="24" y="{top + 40}">score {hit["score"]:.3f}</text>',
            f'<path class="curve" d="M{LEFT},{bottom} {line} L{RIGHT},{bottom} Z"/>',
            f'<rect class="moment" x="{start:.1f}" y="{top + 2}" width="{end - start:.1f}" height="{CURVE + 4}"/>',
            f'<path class="edge" d="M{start:.1f},{top + 2}V{bottom}M{end:.1f},{top + 2}V{bottom}"/>',
            f'<text class="dim small" x="{RIGHT}" y="{bottom + 13}" text-anchor="end">{_span(hit)}</text>',
        ]
    )


def _span(hit: Mapping[str, Any]) -> str:
    moment = hit["moment"]
    if hit["duration"] is None:
        return f"{moment['start']:.0%} to {moment['end']:.0%} of the video"
    return f"{moment['start_seconds']:.0f} to {moment['end_seconds']:.0f} s of {hit['duration']:.0f} s"


if __name__ == "__main__":
    run_command(main)
