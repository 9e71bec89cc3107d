"""Synthetic features without videos: events, both feature streams, and the vectors of words.

A video is a sequence of moments, and each caption describes one of them. The I3D stream encodes the verb of a moment
and the CLIP stream its thing and person, with different frame rates and a random offset, plus a background vector per
video and noise. Everything depends only on the seed and on names, not on the order of generation.

Letters: n, m rows of the I3D and the CLIP stream, Da, Do widths.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from benchmarks.synthetic.language import PEOPLE, THINGS, VERBS, Event, describe
from utils.demo.language import Word

Rows = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]

ACTION_RATE, OBJECT_RATE = 0.67, 1.0  # frames a second of the I3D and the CLIP stream
MAX_OFFSET = 1.5  # maximum offset in seconds between the CLIP and the I3D stream
# Typical norms, relative to 1 for a verb or a thing.
PERSON, BACKGROUND, NOISE = 0.3, 0.6, 1.6
WORD_FORM = 0.3


@dataclass(frozen=True)
class Settings:
    """Numbers of training and of evaluated videos, the seed, and the widths of I3D, CLIP and token features."""

    videos: int = 500
    val: int = 150
    seed: int = 0
    visual_feat_dim: int = 64
    visual_flow_feat_dim: int = 48
    q_feat_size: int = 48


@dataclass(frozen=True)
class Moment:
    """An event, its start and end in seconds, and the words of its caption."""

    caption_id: str
    start: float
    end: float
    event: Event
    words: list[Word]


@dataclass(frozen=True)
class Video:
    """A video, its duration in seconds and its moments in order."""

    id: str
    duration: float
    moments: list[Moment]


def plan_videos(settings: Settings) -> dict[str, list[Video]]:
    """The videos of the splits train and val."""
    videos = [plan_video(f"demo_{index:05d}", settings.seed) for index in range(settings.videos + settings.val)]
    return {"train": videos[: settings.videos], "val": videos[settings.videos :]}


def plan_video(video_id: str, seed: int) -> Video:
    """A video of two to five disjoint moments with different verbs and things, and one of two people in each."""
    rng = _rng(seed, "plan", video_id)
    count = int(rng.integers(2, 6))
    segment = rng.uniform(8, 14)  # seconds
    people = rng.choice(PEOPLE, 2, replace=False)
    verbs = rng.choice(list(VERBS), count, replace=False)
    things = rng.choice(THINGS, count, replace=False)
    moments = []
    for index, (verb, thing) in enumerate(zip(verbs, things, strict=True)):
        share = rng.uniform(0.5, 0.9)
        start = (index + rng.uniform(0, 1 - share)) * segment
        event = Event(str(rng.choice(people)), str(verb), str(thing))
        end = start + share * segment
        moments.append(Moment(f"{video_id}#enc#{index}", round(start, 2), round(end, 2), event, describe(event, rng)))
    return Video(video_id, round(count * segment, 2), moments)


def action_stream(video: Video, settings: Settings) -> Rows:
    """I3D features (n, Da), which encode the verb."""
    rng = _rng(settings.seed, "i3d", video.id)
    rows_nD = _background(round(video.duration * ACTION_RATE), settings.visual_feat_dim, rng)
    for moment in video.moments:
        during_n = _during(moment, len(rows_nD), video.duration)
        rows_nD[during_n] += _vector(settings.seed, "seen", moment.event.verb, settings.visual_feat_dim)
    return rows_nD.astype(np.float32)


def object_stream(video: Video, settings: Settings) -> Rows:
    """CLIP features (m, Do), which encode the thing and the person, shifted by a random offset."""
    rng = _rng(settings.seed, "clip", video.id)
    rows_mD = _background(round(video.duration * OBJECT_RATE), settings.visual_flow_feat_dim, rng)
    for moment in video.moments:
        during_m = _during(moment, len(rows_mD), video.duration, rng.uniform(-MAX_OFFSET, MAX_OFFSET))
        thing, person = (
            _vector(settings.seed, "seen", name, settings.visual_flow_feat_dim)
            for name in (moment.event.thing, moment.event.person)
        )
        rows_mD[during_m] += thing + PERSON * person
    return rows_mD.astype(np.float32)


def word_vector(word: Word, width: int, seed: int) -> Floats:
    """An embedding (width,) of norm about 1 for a word, similar for all forms of the word."""
    return _vector(seed, "meaning", word.meaning, width) + WORD_FORM * _vector(seed, "form", word.text, width)


def _background(rows: int, width: int, rng: np.random.Generator) -> Floats:
    own: Floats = BACKGROUND * rng.standard_normal(width) + NOISE * rng.standard_normal((rows, width))
    return own * width**-0.5


def _during(moment: Moment, rows: int, duration: float, shift: float = 0.0) -> npt.NDArray[np.bool_]:
    times_n = (np.arange(rows) + 0.5) * duration / rows
    inside_n: npt.NDArray[np.bool_] = (times_n >= moment.start + shift) & (times_n <= moment.end + shift)
    return inside_n


def _vector(seed: int, space: str, name: str, width: int) -> Floats:
    return _rng(seed, space, name).standard_normal(width) * width**-0.5


def _rng(seed: int, *key: str) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32("/".join(key).encode())])
