"""Limits that an evaluation stands under: the better branch chosen for each caption, and captions of several videos.

Letters: Q captions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from method.data.captions import Caption, normalized_text
from method.evaluation.metrics import FUSED, RECALL_AT, RECALLS, Ranks, retrieval_metrics

ABOUT_BRANCHES = (
    "recall in percent if the better branch were known for each caption; no limit for the fused score, which may rank "
    "a video above all branches do"
)
ABOUT_DUPLICATES = (
    "the highest recall in percent of any ranking that sees nothing but the words: a text that describes several "
    "videos has one ranking, which cannot put all of them first; texts are equal if they differ only in case, Unicode "
    "form, spaces and the marks . ! ? at either end"
)


@dataclass(frozen=True)
class Duplicates:
    """Texts that describe several videos, and what follows from them.

    captions: with such a text. texts: distinct ones. ceiling: of each recall and SumR, in percent.
    """

    captions: int
    texts: int
    ceiling: dict[str, float]


def duplicates(captions: Sequence[Caption]) -> Duplicates:
    """The captions whose text also describes another video, and the ceiling that they put on recall.

    All captions of one text share a ranking. At K it serves at most the K videos that have the most of these captions:
    of a text with one caption for each of k videos, K / k. Captions that no other video shares can all be right.
    """
    videos_of: dict[str, Counter[str]] = {}
    for caption in captions:
        videos_of.setdefault(normalized_text(caption.text), Counter())[caption.video_id] += 1
    shared = [videos for videos in videos_of.values() if len(videos) > 1]
    affected = sum(videos.total() for videos in shared)
    lost = {k: affected - sum(count for own in shared for _, count in own.most_common(k)) for k in RECALL_AT}
    ceiling = {f"r{k}": 100.0 * (len(captions) - lost[k]) / len(captions) for k in RECALL_AT}
    return Duplicates(affected, len(shared), {**ceiling, "sumr": sum(ceiling.values())})


def best_branch(ranks: Mapping[str, Ranks]) -> dict[str, float] | None:
    """Recalls and SumR if the branch with the better rank could be chosen for each caption; None for one branch.

    >>> ranks = {"action": np.array([1, 9]), "object": np.array([3, 2]), "fused": np.array([1, 4])}
    >>> best_branch(ranks)
    {'r1': 50.0, 'r5': 100.0, 'r10': 100.0, 'r100': 100.0, 'sumr': 350.0}
    """
    branches = [ranks_Q for name, ranks_Q in ranks.items() if name != FUSED]
    if len(branches) < 2:
        return None
    metrics = retrieval_metrics(np.stack(branches).min(0))
    return {key: metrics[key] for key in RECALLS}


def bounds(captions: Sequence[Caption], ranks: Mapping[str, Ranks]) -> dict[str, Any]:
    """Both limits as metrics.json has them; `best_branch` only where there are several."""
    found = duplicates(captions)
    counts = {"captions": found.captions, "texts": found.texts}
    oracle = best_branch(ranks)
    return {
        **({"best_branch": {"about": ABOUT_BRANCHES, **oracle}} if oracle else {}),
        "duplicates": {"about": ABOUT_DUPLICATES, **counts, **found.ceiling},
    }
