"""The videos of the demo: coloured shapes that move, one after the other, on a dark ground.

Everything depends only on the seed and on the name of a video, not on the order in which videos are made. All colours
are equally bright, so that an encoder of brightness cannot tell them apart.

Letters: N frames, S pixels of a side.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, BinaryIO

import av
import numpy as np
import numpy.typing as npt

from utils.demo.language import COLOURS, SHAPES, VERBS, Event, describe

Floats = npt.NDArray[np.floating[Any]]
Frames = npt.NDArray[np.uint8]

SIDE, RATE = 64, 8  # pixels, and frames a second
SUFFIX = ".mp4"
# Red, green and blue add up to the same.
_PALETTE = {
    "blue": (70, 90, 240),
    "green": (60, 250, 90),
    "purple": (190, 20, 190),
    "red": (250, 75, 75),
    "yellow": (195, 195, 10),
}
_GROUND = 90  # the sum of red, green and blue of the ground, whose hue is the video's own
_RADIUS = 0.16  # of a shape, in sides

# Negative inside, and about the distance from the outline in radii; y grows downwards.
_OUTLINES: dict[str, Callable[[Floats, Floats], Floats]] = {
    "circle": lambda x, y: np.hypot(x, y) - 0.95,
    "cross": lambda x, y: np.maximum(np.maximum(abs(x), abs(y)) - 1, np.minimum(abs(x), abs(y)) - 0.35),
    "diamond": lambda x, y: (abs(x) + abs(y) - 1.2) / 2**0.5,
    "moon": lambda x, y: np.maximum(np.hypot(x, y) - 0.95, 0.75 - np.hypot(x - 0.5, y)),
    "ring": lambda x, y: abs(np.hypot(x, y) - 0.72) - 0.23,
    "square": lambda x, y: np.maximum(abs(x), abs(y)) - 0.85,
    "star": lambda x, y: np.hypot(x, y) - 0.7 - 0.3 * np.cos(5 * np.arctan2(x, -y)),
    "triangle": lambda x, y: np.maximum(y - 0.7, 0.866 * abs(x) - 0.5 * (y + 1)),
}


@dataclass(frozen=True)
class Moment:
    """An event, its start and end in seconds, and a sentence about it."""

    start: float
    end: float
    event: Event
    sentence: str


@dataclass(frozen=True)
class Video:
    """A video, its duration in seconds and its moments in order."""

    id: str
    duration: float
    moments: list[Moment]


def plan_video(video_id: str, seed: int) -> Video:
    """A video of two to five moments with different shapes and motions, and some seconds of nothing between them."""
    rng = _rng(seed, "plan", video_id)
    count = int(rng.integers(2, 6))
    segment = rng.uniform(4.5, 6.5)  # seconds
    verbs = rng.choice(list(VERBS), count, replace=False)
    shapes = rng.choice(SHAPES, count, replace=False)
    moments = []
    for index, (verb, shape) in enumerate(zip(verbs, shapes, strict=True)):
        share = rng.uniform(0.65, 0.85)
        start = (index + rng.uniform(0.05, 0.95 - share)) * segment
        event = Event(str(rng.choice(COLOURS)), str(shape), str(verb))
        moments.append(Moment(round(start, 2), round(start + share * segment, 2), event, describe(event, rng)))
    return Video(video_id, round(count * segment * RATE) / RATE, moments)


def draw(video: Video, seed: int) -> Frames:
    """The frames (N, S, S, 3) of a video."""
    rng = _rng(seed, "draw", video.id)
    times_N = (np.arange(round(video.duration * RATE)) + 0.5).astype(np.float32) / RATE
    ground = (rng.dirichlet((4, 4, 4)) * _GROUND).astype(np.float32)
    frames_NSS3 = np.full((len(times_N), SIDE, SIDE, 3), ground.round(), np.uint8)
    for moment in video.moments:
        during_N = (times_N >= moment.start) & (times_N < moment.end)
        share_n = (times_N[during_N] - moment.start) / (moment.end - moment.start)
        x_n, y_n, size_n = _path(moment.event.verb, share_n, moment.end - moment.start, rng)
        covered_nSS = _cover(moment.event.shape, x_n, y_n, _RADIUS * rng.uniform(0.9, 1.1) * size_n)
        colour = np.array(_PALETTE[moment.event.colour], np.float32)
        frames_NSS3[during_N] = (ground + covered_nSS[..., None] * (colour - ground)).round()
    return frames_NSS3


def write_video(file: BinaryIO, frames_NSS3: Frames) -> None:
    """Encode frames as H.264 in MP4."""
    with av.open(file, "w", format="mp4") as container:
        options = {"preset": "superfast", "crf": "18"}
        stream = container.add_stream("libx264", Fraction(RATE), options=options)
        stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "yuv420p"
        stream.codec_context.thread_count = 1
        for frame_SS3 in frames_NSS3:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame_SS3, format="rgb24")))
        container.mux(stream.encode())


def _path(verb: str, share_n: Floats, seconds: float, rng: np.random.Generator) -> tuple[Floats, Floats, Floats]:
    """Where a shape is while it moves, in sides, and how large, relative to the usual."""
    x_n, y_n = (np.full_like(share_n, rng.uniform(0.4, 0.6)) for _ in range(2))
    size_n = np.ones_like(share_n)
    turns_n = share_n * seconds + rng.uniform(0, 2)  # seconds from a random phase on
    along_n = 0.2 + 0.6 * share_n

    def wave(period: float, offset: float = 0.0) -> Floats:
        return np.sin(2 * np.pi * (turns_n / period + offset))

    if verb == "advance":
        x_n = along_n
    elif verb == "retreat":
        x_n = 1 - along_n
    elif verb == "sink":
        y_n = along_n
    elif verb == "rise":
        y_n = 1 - along_n
    elif verb == "blink":
        size_n = (turns_n % 1 < 0.5).astype(np.float32)
    elif verb == "bounce":
        y_n = 0.75 - 0.45 * abs(wave(2.4))
    elif verb == "orbit":
        x_n, y_n = x_n + 0.2 * wave(2.4), y_n + 0.2 * wave(2.4, 0.25)
    elif verb == "pulse":
        size_n = 1 + 0.4 * wave(1.6)
    elif verb == "swing":
        x_n = x_n + 0.22 * wave(2.4)
    elif verb == "tremble":
        x_n = x_n + 0.04 * wave(0.5)
    elif verb == "zigzag":
        x_n, y_n = x_n + 0.15 * wave(1.6), along_n
    return x_n, y_n, size_n


def _cover(shape: str, x_n: Floats, y_n: Floats, radius_n: Floats) -> Floats:
    """How much of each pixel (n, S, S) a shape covers, from 0 to 1."""
    pixels_S = (np.arange(SIDE, dtype=np.float32) + 0.5) / SIDE
    safe_n11 = np.maximum(radius_n, 1e-3)[:, None, None]
    x_n1S = (pixels_S[None, None] - x_n[:, None, None]) / safe_n11
    y_nS1 = (pixels_S[None, :, None] - y_n[:, None, None]) / safe_n11
    distance_nSS = _OUTLINES[shape](*np.broadcast_arrays(x_n1S, y_nS1)) * safe_n11 * SIDE
    covered_nSS: Floats = np.clip(0.5 - distance_nSS, 0, 1) * (radius_n > 0)[:, None, None]
    return covered_nSS


def _rng(seed: int, *key: str) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32("/".join(key).encode())])
