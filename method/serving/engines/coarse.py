"""An engine that scores a few means of each video first, and then every frame of the best candidates.

The frames of a part of a video are alike, so that their mean tells whether one of them may fit. The means are a
fraction of the keys, stay in memory, and are read in as little time. What they miss is lost: `benchmarks/search.py`
measures the recall.

Letters: Q queries, V videos, n frames of a video, P parts of it, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor

from method.evaluation.corpus import Corpus
from method.evaluation.frame_embeddings import FrameEmbeddings
from method.evaluation.scorer import ScoringSettings
from method.runtime.progress import progress_bar
from method.serving.engines import Found, Ranking
from method.serving.engines.exact import ExactEngine
from method.serving.engines.rescoring import Videos, require_best_frames

PARTS = 4


class CoarseEngine:
    """Finds candidates by the means of parts of each video; see `SearchEngine`. It computes no `right_rank`.

    Args:
        corpus: the videos; they may be memory-mapped. Their means are computed at the first search.
        settings: how to score. InputError for a branch whose head scores in a way of its own.
        device: where to compute; embeddings are moved there.
        candidates: videos that are scored exactly for a query, at least four times as many as it asks for.
    """

    def __init__(self, corpus: Corpus, settings: ScoringSettings, device: torch.device, candidates: int) -> None:
        require_best_frames(settings, "coarse")
        self._corpus, self._settings, self._device = corpus.to(device), settings, device
        self._candidates = candidates

    @property
    def video_ids(self) -> list[str]:
        """The videos, in corpus order."""
        return self._corpus.video_ids

    def frames(self, index: int) -> dict[str, Tensor]:
        """See `SearchEngine`."""
        return self._corpus.video(index)

    @torch.inference_mode()
    def search(
        self, vectors: Mapping[str, Tensor], count: int, right: Sequence[int | None] | None = None
    ) -> list[Ranking]:
        """See `SearchEngine`."""
        rankings = []
        for query, scores_V in enumerate(self._means.scan(vectors)):
            most = min(max(self._candidates, 4 * count), len(scores_V))
            candidates = scores_V.topk(most).indices.sort().values.tolist()
            engine = ExactEngine(self._corpus.select(candidates), self._settings, self._device)
            (ranking,) = engine.search({name: own_QD[query : query + 1] for name, own_QD in vectors.items()}, count)
            best = [Found(candidates[own.index], own.scores, own.best_frames) for own in ranking.best]
            rankings.append(Ranking(best))
        return rankings

    @cached_property
    def _means(self) -> Videos:
        """The means of all videos, in bf16."""
        frames = {name: pooled(own, name) for name, own in self._corpus.frames.items()}
        return Videos(Corpus(self.video_ids, frames), self._settings, self._device)


def pooled(frames: FrameEmbeddings, name: str = "frames") -> FrameEmbeddings:
    """The normalised means (P, D) of `PARTS` parts of each video with about as many frames each, in bf16."""
    lengths = [min(PARTS, length) for length in frames.lengths]
    return FrameEmbeddings.join(
        (_means_of(frames.video(i)) for i in progress_bar(range(len(frames)), name, "video")), lengths
    )


def _means_of(frames_nD: Tensor) -> Tensor:
    means_PD = torch.stack([part.mean(0) for part in frames_nD.tensor_split(min(PARTS, len(frames_nD)))])
    return torch.nn.functional.normalize(means_PD, dim=-1).bfloat16()
