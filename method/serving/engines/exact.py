"""The exact engine: every query is scored against every frame of every video, as in evaluation.

Letters: Q queries, V videos, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from method.evaluation.corpus import Corpus
from method.evaluation.metrics import FUSED
from method.evaluation.scorer import ScoringSettings
from method.serving.engines import Ranking
from method.serving.engines.rescoring import Videos, rounding


class ExactEngine:
    """Scores all videos of a corpus; see `SearchEngine`.

    Args:
        corpus: the videos; they may be memory-mapped.
        settings: how to score.
        device: where to compute; embeddings are moved there.
    """

    def __init__(self, corpus: Corpus, settings: ScoringSettings, device: torch.device) -> None:
        self._videos = Videos(corpus, settings, device)

    @property
    def video_ids(self) -> list[str]:
        """The videos, in corpus order."""
        return self._videos.ids

    def frames(self, index: int) -> dict[str, Tensor]:
        """See `SearchEngine`."""
        return self._videos.frames(index)

    @torch.inference_mode()
    def search(
        self, vectors: Mapping[str, Tensor], count: int, right: Sequence[int | None] | None = None
    ) -> list[Ranking]:
        """See `SearchEngine`."""
        rankings = []
        for query, scores_V in enumerate(self._videos.scan(vectors)):
            own = {name: vectors_QD[query] for name, vectors_QD in vectors.items()}
            target = right[query] if right else None
            rank = None if target is None else self._rank(own, scores_V, target)
            rankings.append(Ranking(self._videos.best(own, best_candidates(scores_V, count), count), rank))
        return rankings

    def _rank(self, vectors: Mapping[str, Tensor], scores_V: Tensor, target: int) -> int:
        """How many videos score at least as much as the target; those within rounding of it are scored again."""
        close_V = (scores_V - scores_V[target]).abs() <= 2 * rounding(scores_V)
        close = close_V.nonzero()[:, 0].tolist()
        above = int(((scores_V > scores_V[target]) & ~close_V).sum())
        scores, _ = self._videos.score(vectors, close)
        return above + int((scores[FUSED] >= scores[FUSED][close.index(target)]).sum())


def best_candidates(scores_V: Tensor, count: int) -> list[int]:
    """Indices, in order, of all videos that may be among the best `count`, whatever the rounding of their scores.

    >>> best_candidates(torch.tensor([0.1, 0.5, 0.9, 0.5]), 2)
    [1, 2, 3]
    """
    if count >= len(scores_V):
        return list(range(len(scores_V)))
    least = scores_V.topk(count).values[-1]
    return (scores_V >= least - 2 * rounding(scores_V)).nonzero()[:, 0].tolist()
