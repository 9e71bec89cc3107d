"""The worst captions, what outranks them, and their timelines.

Letters: Q captions, V videos, T frames of a timeline.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from method.data.captions import Caption, group_by_video, normalized_text
from method.evaluation.metrics import FUSED, distinct_scores
from method.evaluation.moments import Moment, TrueMoment, best_moment, frame_timeline
from method.evaluation.ranking import Evaluation
from method.evaluation.scorer import Scorer

Timeline = npt.NDArray[np.float32]


@dataclass(frozen=True)
class RankedVideo:
    """A video in the ranking of one caption: its fused score and its own captions.

    is_right: whether it is right too by the labels with several right videos; None without labels of the caption.
    """

    video_id: str
    score: float
    captions: list[Caption]
    is_right: bool | None = None


@dataclass(frozen=True)
class Failure:
    """A caption whose video is not ranked first.

    index: of the caption in the evaluation. rank: of its video. ranks: the same under each score. winners: the best of
    the videos that score at least as much, best first. same_text: whether one of these has a caption with the same
    words.
    """

    index: int
    caption: Caption
    rank: int
    ranks: dict[str, int]
    right: RankedVideo
    winners: list[RankedVideo]
    same_text: bool


def worst_captions(evaluation: Evaluation, count: int, winners: int) -> list[Failure]:
    """At most `count` captions, worst fused rank first, each with at most `winners` videos that outrank its own."""
    fused_Q = evaluation.ranks[FUSED]
    worst = [int(index) for index in np.argsort(-fused_Q, kind="stable")[:count] if fused_Q[index] > 1]
    if not worst:
        return []
    blocks = Scorer(evaluation.corpus, evaluation.settings).blocks(evaluation.queries.subset(worst))
    scores_qV = torch.cat([scores[FUSED] for _, scores in blocks]).cpu()
    captions_of = group_by_video(evaluation.queries.captions)
    return [
        _failure(evaluation, captions_of, index, scores_V, winners)
        for index, scores_V in zip(worst, scores_qV, strict=True)
    ]


def _failure(
    evaluation: Evaluation, captions_of: Mapping[str, list[Caption]], index: int, scores_V: torch.Tensor, winners: int
) -> Failure:
    caption = evaluation.queries.captions[index]
    order = scores_V.argsort(descending=True, stable=True).tolist()
    names = [evaluation.video_ids[v] for v in order]
    labels = evaluation.right_ranks.labels.videos.get(caption.id) if evaluation.right_ranks is not None else None
    ranked = [
        RankedVideo(name, float(scores_V[v]), captions_of.get(name, []), name in labels if labels else None)
        for name, v in zip(names, order, strict=True)
    ]
    right = next(video for video in ranked if video.video_id == caption.video_id)
    ranks = {name: int(ranks_Q[index]) for name, ranks_Q in distinct_scores(evaluation.ranks).items()}
    rank = int(evaluation.ranks[FUSED][index])
    # Count by rank, not by score: scores computed in other blocks may round differently and break a tie.
    above = [video for video in ranked if video is not right][: min(winners, rank - 1)]
    same_text = normalized_text(caption.text) in {
        normalized_text(other.text) for own in above for other in own.captions
    }
    return Failure(index, caption, rank, ranks, right, above, same_text)


@dataclass(frozen=True)
class Timelines:
    """Frame scores of a video for a caption.

    scores: branch -> cosine of each of its own frames, and 'fused' where there are several branches.
    predicted: the best moment. duration: seconds of the video, where known. true: the annotated moment, where known.
    """

    video_id: str
    scores: dict[str, Timeline]
    predicted: Moment
    duration: float | None
    true: TrueMoment | None


def timelines(
    evaluation: Evaluation,
    index: int,
    video_id: str,
    moments: Mapping[str, TrueMoment],
    seconds: Mapping[str, float],
) -> Timelines:
    """Timelines of the caption at `index` in a video; `seconds` are durations by video id."""
    caption = evaluation.queries.captions[index]
    frames = evaluation.corpus.video(evaluation.video_ids.index(video_id))
    vectors = {name: vectors_QD[index] for name, vectors_QD in evaluation.queries.vectors.items()}
    scores = {name: (frames[name] @ vectors[name]).cpu().numpy() for name in frames}
    fused_T = frame_timeline(frames, vectors, evaluation.settings).cpu().numpy()
    if len(frames) > 1:
        scores[FUSED] = fused_T
    true = moments.get(caption.id) if video_id == caption.video_id else None
    return Timelines(video_id, scores, best_moment(fused_T), seconds.get(video_id), true)
