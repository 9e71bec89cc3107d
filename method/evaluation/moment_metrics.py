"""How well the moments that are found agree with those that are known.

An addition of this program; neither the paper nor the published program reports moments.
Letters: Q captions with a known moment.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from method.evaluation.metrics import Ranks
from method.evaluation.moments import Moment, TrueMoment, best_moment, frame_timelines, iou
from method.evaluation.ranking import Evaluation

IOUS = (0.3, 0.5, 0.7)
CORPUS_RECALL_AT = (1, 10, 100)
ABOUT = (
    "an addition of this program, not of the paper: percent of the captions with a known moment whose moment is found "
    "with IoU of at least m; in_video: in the right video; in_corpus: and the right video is among the first K of all"
)

Overlaps = npt.NDArray[np.float64]


def moments_in_right_videos(
    evaluation: Evaluation, caption_ids: Collection[str], fusion_weight: float
) -> dict[str, Moment]:
    """The moment that is found for each of these captions in its own video, in the order of the evaluation."""
    places: dict[str, list[int]] = {}
    for place, caption in enumerate(evaluation.queries.captions):
        if caption.id in caption_ids:
            places.setdefault(caption.video_id, []).append(place)
    found: dict[int, Moment] = {}
    for place, video_id in enumerate(evaluation.video_ids):
        if video_id in places:
            vectors = evaluation.queries.part(places[video_id]).vectors
            timelines_qT = frame_timelines(evaluation.corpus.video(place), vectors, fusion_weight).cpu().numpy()
            found.update(zip(places[video_id], map(best_moment, timelines_qT), strict=True))
    return {evaluation.queries.captions[place].id: found[place] for place in sorted(found)}


def moment_metrics(
    evaluation: Evaluation, known: Mapping[str, TrueMoment], fusion_weight: float
) -> dict[str, Any] | None:
    """Percent of the captions whose moment is found, in their own video and in the whole corpus.

    None when no caption's moment is known. Only the right video can hold the right moment, so the corpus is searched
    by the rank of the right video under the fused score, in which a tie counts against the caption.
    """
    found = moments_in_right_videos(evaluation, known.keys(), fusion_weight)
    if not found:
        return None
    overlaps_Q = np.array([iou((moment.start, moment.end), known[name].span) for name, moment in found.items()])
    ranks = [
        rank for name, rank in zip(evaluation.caption_ids, evaluation.ranks["fused"], strict=True) if name in found
    ]
    return {"about": ABOUT, "captions": len(found), **recalls_of_moments(overlaps_Q, np.array(ranks))}


def recalls_of_moments(overlaps_Q: Overlaps, ranks_Q: Ranks) -> dict[str, dict[str, float]]:
    """R@1 in the right video and R@K in the corpus at each IoU, in percent.

    >>> recalls = recalls_of_moments(np.array([0.4, 0.8]), np.array([1, 5]))
    >>> recalls["in_video"]
    {'r1_iou0.3': 100.0, 'r1_iou0.5': 50.0, 'r1_iou0.7': 50.0}
    >>> recalls["in_corpus"]["r1_iou0.3"], recalls["in_corpus"]["r1_iou0.5"], recalls["in_corpus"]["r10_iou0.5"]
    (50.0, 0.0, 50.0)
    """
    in_corpus = {
        f"r{k}_iou{least}": _percent((overlaps_Q >= least) & (ranks_Q <= k)) for k in CORPUS_RECALL_AT for least in IOUS
    }
    return {"in_video": {f"r1_iou{least}": _percent(overlaps_Q >= least) for least in IOUS}, "in_corpus": in_corpus}


def _percent(holds_Q: npt.NDArray[np.bool_]) -> float:
    return 100.0 * int(holds_Q.sum()) / len(holds_Q)
