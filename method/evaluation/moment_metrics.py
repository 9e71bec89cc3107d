"""How well predicted moments match the annotated ones.

Not in the paper: neither it nor the published program reports moments.
Letters: Q captions with an annotated moment.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from method.evaluation.metrics import FUSED, Ranks
from method.evaluation.moments import Moment, TrueMoment, best_moment, frame_timelines, iou
from method.evaluation.ranking import Evaluation

IOUS = (0.3, 0.5, 0.7)
CORPUS_RECALL_AT = (1, 10, 100)
ABOUT = (
    "an addition of this program, not of the paper: percent of the captions with an annotated moment whose predicted "
    "moment has an IoU of at least m; in_video: in the right video; in_corpus: and the right video is among the first "
    "K of all"
)

Overlaps = npt.NDArray[np.float64]


def predict_moments(evaluation: Evaluation, caption_ids: Collection[str]) -> dict[str, Moment]:
    """The predicted moment of each of these captions in its own video, in the order of the evaluation."""
    indices: dict[str, list[int]] = {}  # of the captions of each video
    for index, caption in enumerate(evaluation.queries.captions):
        if caption.id in caption_ids:
            indices.setdefault(caption.video_id, []).append(index)
    predicted: dict[int, Moment] = {}
    for video, video_id in enumerate(evaluation.video_ids):
        if video_id in indices:
            vectors = evaluation.queries.subset(indices[video_id]).vectors
            timelines_qT = frame_timelines(evaluation.corpus.video(video), vectors, evaluation.settings).cpu().numpy()
            predicted.update(zip(indices[video_id], map(best_moment, timelines_qT), strict=True))
    return {evaluation.queries.captions[index].id: predicted[index] for index in sorted(predicted)}


def moment_metrics(evaluation: Evaluation, moments: Mapping[str, TrueMoment]) -> dict[str, Any] | None:
    """Percent of the captions whose moment is found, in their own video and in the whole corpus.

    None when no caption's moment is annotated. Only the right video can hold the right moment, so moments in the corpus
    count by the rank of the right video under the fused score, in which a tie counts against the caption.
    """
    predicted = predict_moments(evaluation, moments.keys())
    if not predicted:
        return None
    overlaps_Q = np.array([iou((moment.start, moment.end), moments[name].span) for name, moment in predicted.items()])
    fused_Q = evaluation.ranks[FUSED]
    ranks = [rank for name, rank in zip(evaluation.caption_ids, fused_Q, strict=True) if name in predicted]
    return {"about": ABOUT, "captions": len(predicted), **moment_recalls(overlaps_Q, np.array(ranks))}


def moment_recalls(overlaps_Q: Overlaps, ranks_Q: Ranks) -> dict[str, dict[str, float]]:
    """R@1 in the right video and R@K in the corpus at each IoU, in percent.

    >>> recalls = moment_recalls(np.array([0.4, 0.8]), np.array([1, 5]))
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
