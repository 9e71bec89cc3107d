"""SumR by properties of captions and videos.

Letters: Q captions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from method.data.captions import Caption
from method.evaluation.metrics import Ranks
from method.evaluation.moments import TrueMoment, durations
from method.evaluation.report.statistics import (
    Group,
    Indices,
    bin_indices,
    even_bins,
    ratio_bin_indices,
    sumr_by_group,
    whole_number_bins,
)

_CAPTIONS = (1, 2, 3, 4, 5, 6, 11)
_EVEN_BINS = 5
_EVENLY = "at most five bins with about equally many captions each"
_PAPERS_RATIOS = (0.0, 0.2, 0.4, 1.0)
_TEN_RATIOS = tuple(round(0.1 * step, 1) for step in range(11))


@dataclass(frozen=True)
class Breakdown:
    """SumR of groups of captions.

    name: of its files. title: the property. unit: of the group labels. note: how captions are grouped.
    groups: empty where the property is unknown.
    """

    name: str
    title: str
    unit: str
    note: str
    groups: list[Group]


def breakdowns(
    ranks: Mapping[str, Ranks],
    captions: Sequence[Caption],
    frames: Mapping[str, int],
    stream: str,
    moments: Mapping[str, TrueMoment],
) -> list[Breakdown]:
    """All breakdowns of an evaluation.

    Args:
        ranks: score name -> ranks (Q,).
        captions: the Q captions.
        frames: number of stored feature rows of each video.
        stream: name of these features.
        moments: annotated moments by caption id.
    """
    return [
        _by_words(ranks, captions),
        _by_captions(ranks, captions),
        _by_length(ranks, captions, frames, stream, moments),
        _by_ratio(ranks, captions, moments, "moment_ratio", _PAPERS_RATIOS, "the three bins that papers report"),
        _by_ratio(ranks, captions, moments, "moment_ratio_ten", _TEN_RATIOS, "ten equal bins"),
    ]


def _by_words(ranks: Mapping[str, Ranks], captions: Sequence[Caption]) -> Breakdown:
    words_Q = np.array([len(caption.text.split()) for caption in captions])
    bins, labels = even_bins(words_Q, _EVEN_BINS)
    groups = sumr_by_group(ranks, bin_indices(words_Q, bins), labels)
    return Breakdown("caption_length", "caption length", "words", f"Words separated by spaces; {_EVENLY}.", groups)


def _by_captions(ranks: Mapping[str, Ranks], captions: Sequence[Caption]) -> Breakdown:
    count = Counter(caption.video_id for caption in captions)
    bins, labels = whole_number_bins(_CAPTIONS)
    count_Q = np.array([count[caption.video_id] for caption in captions])
    groups = [group for group in sumr_by_group(ranks, bin_indices(count_Q, bins), labels) if group.captions]
    note = "Captions of the evaluated split that describe the same video."
    return Breakdown("captions_of_video", "number of captions of the video", "captions", note, groups)


def _by_length(
    ranks: Mapping[str, Ranks],
    captions: Sequence[Caption],
    frames: Mapping[str, int],
    stream: str,
    moments: Mapping[str, TrueMoment],
) -> Breakdown:
    seconds = durations(captions, moments)
    if all(caption.video_id in seconds for caption in captions):
        unit, source = "seconds", "Durations in whole seconds, from the moments file"
        lengths: Mapping[str, float] = seconds
    else:
        unit, source = "frames", f"Rows of {stream} as stored in the feature file"
        lengths = frames
    length_Q: Indices = np.array([round(lengths[caption.video_id]) for caption in captions])
    bins, labels = even_bins(length_Q, _EVEN_BINS)
    groups = sumr_by_group(ranks, bin_indices(length_Q, bins), labels)
    note = f"{source}; {_EVENLY}."
    return Breakdown("video_length", "video length", unit, note, groups)


def _by_ratio(
    ranks: Mapping[str, Ranks],
    captions: Sequence[Caption],
    moments: Mapping[str, TrueMoment],
    name: str,
    edges: Sequence[float],
    division: str,
) -> Breakdown:
    title = f"moment-to-video ratio, {division}"
    if not moments:
        return Breakdown(name, title, "", "", [])
    ratio_Q = np.array([moments[caption.id].ratio if caption.id in moments else np.nan for caption in captions])
    labels = [f"{low:g}–{high:g}" for low, high in pairwise(edges)]
    groups = sumr_by_group(ranks, ratio_bin_indices(ratio_Q, edges), labels)
    known = int(np.isfinite(ratio_Q).sum())
    note = (
        f"Length of the annotated moment divided by that of the video, known for {known:,} of {len(captions):,} "
        "captions. A bin includes its upper bound, not its lower."
    )
    return Breakdown(name, title, "moment / video", note, groups)
