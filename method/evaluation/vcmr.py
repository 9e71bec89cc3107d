"""Video corpus moment retrieval as the field reports it, here weakly supervised: no moment is seen in training.

The moments of all videos are ranked together. R@K at IoU m is the percent of the captions for which one of the first K
is right: in the right video, with an IoU of at least m with the annotated moment (Lei et al. 2020, TVR; weakly
supervised in JSG, FAWL and ProPy). A video has the moments of `method.evaluation.proposals`, however many.

The score of a moment is the fused score of its video, minus what the moment's peak lacks to the video's best moment.
Both are cosines, so no weight has to be chosen; best moments are ranked as evaluation and search rank the videos, and a
further moment comes after those of the videos that beat its video without the difference. A tie counts against the
caption: among equal scores wrong moments come first.

Letters: Q captions with an annotated moment, K best videos kept, T frames, N moments, P pairs of a caption and a video,
I values of IoU.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from method.evaluation.moment_metrics import CORPUS_RECALL_AT, IOUS
from method.evaluation.moments import TrueMoment, frame_timelines
from method.evaluation.proposals import Proposals, propose
from method.evaluation.ranking import Evaluation
from method.runtime.progress import progress_bar

# No moment scores more than its video, and the best one scores as much. So when n videos score at least as much as some
# moment, at least n moments do, and each of the n - 1 or n in other videos is wrong. Let x be the score of the best
# right moment.
# * If at most 101 videos score x or more, the best 101 include them all, and with them every moment that scores x or
#   more: the position of the right moment is exact.
# * Else all of the best 101 score x or more, and at least 100 of them are other videos than the right one: the right
#   moment is behind 100 wrong ones, both in fact and as counted from the best 101.
BEST_VIDEOS = max(CORPUS_RECALL_AT) + 1
ABOUT = (
    "video corpus moment retrieval, weakly supervised: percent of the captions with an annotated moment for which one "
    "of the first K moments of all videos is in the right video and has an IoU of at least m with it; several moments "
    "a video, suppressed above an IoU of 0.5"
)
_BLOCK = 1024  # timelines at a time
_ROUNDING = 1e-6  # of scores that are compared before they are computed in the same way

Indices = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float64]


def vcmr_metrics(evaluation: Evaluation, moments: Mapping[str, TrueMoment]) -> dict[str, Any] | None:
    """R@1, 10 and 100 at IoU 0.3, 0.5 and 0.7 in percent; None when no caption's moment is annotated.

    ValueError when the evaluation has not kept the best `BEST_VIDEOS` videos.
    """
    captions = evaluation.queries.captions
    annotated = [index for index, caption in enumerate(captions) if caption.id in moments]
    if not annotated:
        return None
    spans_Q2 = np.array([moments[captions[index].id].span for index in annotated])
    position_QI = right_positions(evaluation, np.array(annotated), spans_Q2)
    recalls = {
        f"r{k}_iou{least}": 100.0 * int((position_QI[:, i] <= k).sum()) / len(annotated)
        for k in CORPUS_RECALL_AT
        for i, least in enumerate(IOUS)
    }
    return {"about": ABOUT, "captions": len(annotated), **recalls}


@torch.inference_mode()
def right_positions(evaluation: Evaluation, index_Q: Indices, spans_Q2: Scores) -> Scores:
    """Position of the first right moment among all moments, at each IoU, (Q, I); exact up to 100.

    Infinite, or above 100, where it is not among the first 100.

    Args:
        evaluation: with the best videos.
        index_Q: captions, as indices of the evaluation.
        spans_Q2: their annotated moments, as fractions of the video.
    """
    best = evaluation.best_videos
    if best is None or best.videos.shape[1] < min(BEST_VIDEOS, len(evaluation.video_ids)):
        raise ValueError(f"the evaluation has not kept the {BEST_VIDEOS} best videos of each caption")
    index_of = {video_id: index for index, video_id in enumerate(evaluation.video_ids)}
    right_Q = np.array([index_of[evaluation.queries.captions[index].video_id] for index in index_Q])
    videos_QK, scores_QK = best.videos[index_Q], best.scores[index_Q].astype(np.float64)
    is_right_QK = videos_QK == right_Q[:, None]

    # In the right video: the score of the best right moment, and the wrong ones before it.
    target_QI = np.full((len(index_Q), len(IOUS)), -np.inf)
    wrong_QI = np.zeros((len(index_Q), len(IOUS)), np.int64)
    for query_N, score_N, found in _moments(evaluation, index_Q, np.nonzero(is_right_QK), videos_QK, scores_QK):
        right_NI = found.overlaps(spans_Q2[query_N])[:, None] >= np.array(IOUS)
        np.maximum.at(target_QI, query_N, np.where(right_NI, score_N[:, None], -np.inf))
        np.add.at(wrong_QI, query_N, ~right_NI & (score_N[:, None] >= target_QI[query_N]))
    # In the other videos: the moments before it. Only videos that score as much have some, at least one each, which
    # settles the cases with too many of them.
    ahead_QKI = ~is_right_QK[..., None] & (scores_QK[..., None] >= target_QI[:, None])
    target_QI[ahead_QKI.sum(1) >= max(CORPUS_RECALL_AT)] = -np.inf
    least_Q = np.where(np.isfinite(target_QI), target_QI, np.inf).min(1)
    others = np.nonzero(~is_right_QK & (scores_QK >= least_Q[:, None]))
    for query_N, score_N, _ in _moments(evaluation, index_Q, others, videos_QK, scores_QK, least_Q):
        np.add.at(wrong_QI, query_N, score_N[:, None] >= target_QI[query_N])
    return np.where(np.isfinite(target_QI), 1.0 + wrong_QI, np.inf)


def _moments(
    evaluation: Evaluation,
    index_Q: Indices,
    pairs: tuple[Indices, ...],
    videos_QK: Indices,
    scores_QK: Scores,
    least_Q: Scores | None = None,
) -> Iterator[tuple[Indices, Scores, Proposals]]:
    """Moments of pairs of caption and video, those of one video at a time: caption (N,) in Q, score (N,), and spans.

    pairs: indices in Q and K. least_Q: lower scores are not wanted.
    """
    video_P = videos_QK[pairs]
    order_P = np.argsort(video_P, kind="stable")
    query_P, score_P, video_P = pairs[0][order_P], scores_QK[pairs][order_P], video_P[order_P]
    bounds = [*np.unique(video_P, return_index=True)[1].tolist(), len(video_P)]
    for start, end in progress_bar(list(pairwise(bounds)), "moments", "video"):
        frames = evaluation.corpus.video(int(video_P[start]))
        for first in range(start, end, _BLOCK):
            block = slice(first, min(first + _BLOCK, end))
            index = torch.from_numpy(index_Q[query_P[block]])
            vectors = {name: own_QD[index.to(own_QD.device)] for name, own_QD in evaluation.queries.vectors.items()}
            timelines_qT = frame_timelines(frames, vectors, evaluation.settings).cpu().numpy().astype(np.float64)
            highest_q = timelines_qT.max(1)
            least_q = None
            if least_Q is not None:
                least_q = least_Q[query_P[block]] - score_P[block] + highest_q - _ROUNDING
            found = propose(timelines_qT, least_Q=least_q)
            own_N = found.timeline
            yield query_P[block][own_N], score_P[block][own_N] + (found.score - highest_q[own_N]), found
