"""More like this: a moment of a searched video as a query.

Keys of frames and queries are compared by their cosine, so that the mean key of a moment's frames can take the place of
a query. Not in the paper.

Letters: n frames of a video, D width.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from method.ops.precision import PRECISIONS
from method.runtime.errors import InputError, shown

EXPECTED = "expected VIDEO@TIME or VIDEO@START-END in seconds or percent, such as v01@12.5-20 or v01@30%"
_NUMBER = r"(\d{1,9}(?:\.\d{1,9})?)"
_FORM = re.compile(rf"(?s:(.+))@{_NUMBER}(?:%?-{_NUMBER})?(%?)", re.ASCII)


@dataclass(frozen=True)
class Like:
    """A moment of a video: start and end as fractions 0 to 1 of it, equal for a single frame."""

    video_id: str
    start: float
    end: float

    def __str__(self) -> str:
        """As `parse` reads it, in percent.

        >>> str(Like("v01", 0.25, 0.5))
        'v01@25.00-50.00%'
        """
        return f"{self.video_id}@{100 * self.start:.2f}-{100 * self.end:.2f}%"


def parse(text: str, durations: Mapping[str, float]) -> Like:
    """Read VIDEO@TIME or VIDEO@START-END, in seconds or in percent of the video; the id may have an @, too.

    >>> parse("v01@3-4.5", {"v01": 6.0})
    Like(video_id='v01', start=0.5, end=0.75)
    >>> parse("v01@30%", {}) == parse("v01@30-30%", {}) == Like("v01", 0.3, 0.3)
    True

    Args:
        text: of the user.
        durations: seconds of videos, as far as known.

    Raises:
        InputError: for another form, a moment outside of the video, and seconds without a duration.
    """
    match = _FORM.fullmatch(text)
    if match is None:
        raise InputError(f"{shown(text)}: {EXPECTED}")
    video_id, first, last, percent = match.groups()
    length = 100.0 if percent else durations.get(video_id)
    if length is None:
        raise InputError(f"{shown(text)}: the duration of this video is unknown; give percents, such as {video_id}@30%")
    start, end = float(first), float(last or first)
    if not start <= end or start > length:
        unit = "%" if percent else " seconds"
        raise InputError(f"{shown(text)}: expected 0 <= start <= end in a video of {length:g}{unit}")
    return Like(video_id, start / length, min(end / length, 1.0))


def like_vectors(frames: Mapping[str, Tensor], like: Like, precision: str) -> dict[str, Tensor]:
    """A moment as a query: branch -> normalised mean (D,) of the keys of its frames, rounded as queries are.

    Frames belong to the moment if their centre is in it; if none is, the frame at its middle does.

    Args:
        frames: branch -> normalised keys (n, D) of the video.
        like: the moment.
        precision: that embeddings are rounded to.
    """
    vectors = {}
    for name, frames_nD in frames.items():
        centre_n = (torch.arange(len(frames_nD), device=frames_nD.device) + 0.5) / len(frames_nD)
        inside_n = (centre_n >= like.start) & (centre_n <= like.end)
        if not inside_n.any():
            inside_n[min(int((like.start + like.end) / 2 * len(frames_nD)), len(frames_nD) - 1)] = True
        mean_D = frames_nD[inside_n].float().mean(0)
        vectors[name] = torch.nn.functional.normalize(mean_D, dim=0).to(PRECISIONS[precision]).float()
    return vectors
