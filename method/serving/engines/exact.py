"""The exact engine: every query is scored against every frame of every video, as in evaluation.

Letters: Q queries, q queries of a block, V videos, D width.
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
        queries = len(next(iter(vectors.values())))
        right = right or [None] * queries
        found = []
        for start in range(0, queries, self._videos.query_block):
            block = slice(start, start + self._videos.query_block)
            found += self._search({name: own[block] for name, own in vectors.items()}, count, right[block])
        return found

    def _search(self, vectors: Mapping[str, Tensor], count: int, right: Sequence[int | None]) -> list[Ranking]:
        scores_qV = self._videos.scan(vectors)
        rankings = []
        for row, target in enumerate(right):
            own = {name: vectors_qD[row] for name, vectors_qD in vectors.items()}
            candidates = best_candidates(scores_qV[row], count)
            rank = None if target is None else self._rank(own, scores_qV[row], target)
            rankings.append(Ranking(self._videos.best(own, candidates, count), rank))
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
