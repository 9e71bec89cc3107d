"""The captions that fail worst, what outranks them, and when their videos fit them.

Letters: Q captions, V videos, T frames of a timeline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from method.data.captions import Caption, group_by_video
from method.evaluation.corpus import Scorer
from method.evaluation.moments import Moment, TrueMoment, best_moment, frame_timeline
from method.evaluation.ranking import Evaluation

Timeline = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Found:
    """A video as one caption's ranking has it: its fused score and its own captions."""

    video_id: str
    score: float
    captions: list[Caption]


@dataclass(frozen=True)
class Failure:
    """A caption whose video is not first.

    place: of the caption in the evaluation. ranks: of its video, by score name. winners: the highest of the videos that
    score at least as much, best first. same_text: whether one of these has a caption with the very same words.
    """

    place: int
    caption: Caption
    ranks: dict[str, int]
    right: Found
    winners: list[Found]
    same_text: bool


def worst_captions(
    evaluation: Evaluation, fusion_weight: float, memory_mb: int, count: int, winners: int
) -> list[Failure]:
    """At most `count` captions, worst fused rank first, each with at most `winners` videos that outrank its own."""
    fused_Q = evaluation.ranks["fused"]
    worst = [int(place) for place in np.argsort(-fused_Q, kind="stable")[:count] if fused_Q[place] > 1]
    if not worst:
        return []
    blocks = Scorer(evaluation.corpus, memory_mb).blocks(evaluation.queries.part(worst), fusion_weight)
    scores_qV = torch.cat([scores["fused"] for _, scores in blocks]).cpu()
    own = group_by_video(evaluation.queries.captions)
    return [
        _failure(evaluation, own, place, scores_V, winners) for place, scores_V in zip(worst, scores_qV, strict=True)
    ]


def _failure(
    evaluation: Evaluation, own: Mapping[str, list[Caption]], place: int, scores_V: torch.Tensor, winners: int
) -> Failure:
    caption = evaluation.queries.captions[place]
    order = scores_V.argsort(descending=True, stable=True).tolist()
    names = [evaluation.video_ids[v] for v in order]
    ranked = [Found(name, float(scores_V[v]), own.get(name, [])) for name, v in zip(names, order, strict=True)]
    right = next(found for found in ranked if found.video_id == caption.video_id)
    ranks = {name: int(ranks_Q[place]) for name, ranks_Q in evaluation.ranks.items()}
    # By the rank and not by the scores: computed in other blocks they may round differently, and break a tie.
    above = [found for found in ranked if found is not right][: min(winners, ranks["fused"] - 1)]
    same_text = any(_words(other) == _words(caption) for found in above for other in found.captions)
    return Failure(place, caption, ranks, right, above, same_text)


def _words(caption: Caption) -> list[str]:
    return caption.text.casefold().strip(" .!?").split()


def repeated_captions(captions: Sequence[Caption]) -> int:
    """How many captions occur word for word for another video too; no ranking can tell their videos apart."""
    videos: dict[tuple[str, ...], set[str]] = {}
    for caption in captions:
        videos.setdefault(tuple(_words(caption)), set()).add(caption.video_id)
    return sum(len(videos[tuple(_words(caption))]) > 1 for caption in captions)


@dataclass(frozen=True)
class Timelines:
    """How well each moment of a video fits a caption.

    scores: branch, and 'fused' for two of them, -> cosine at each frame, the branches on their own clocks.
    found: the best moment. duration: seconds of the video, where known. true: the moment of the caption, where known.
    """

    video_id: str
    scores: dict[str, Timeline]
    found: Moment
    duration: float | None
    true: TrueMoment | None


def timelines(
    evaluation: Evaluation,
    place: int,
    video_id: str,
    fusion_weight: float,
    moments: Mapping[str, TrueMoment],
    seconds: Mapping[str, float],
) -> Timelines:
    """Timelines of the caption at `place` in a video; `seconds` are durations by video id."""
    caption = evaluation.queries.captions[place]
    keys = evaluation.corpus.video(evaluation.video_ids.index(video_id))
    vectors = {name: vectors_QD[place] for name, vectors_QD in evaluation.queries.vectors.items()}
    scores = {
        name: frame_timeline({name: keys[name]}, {name: vectors[name]}, fusion_weight).cpu().numpy() for name in keys
    }
    fused_T = frame_timeline(keys, vectors, fusion_weight).cpu().numpy()
    if len(keys) == 2:
        scores["fused"] = fused_T
    true = moments.get(caption.id) if video_id == caption.video_id else None
    return Timelines(video_id, scores, best_moment(fused_T), seconds.get(video_id), true)
