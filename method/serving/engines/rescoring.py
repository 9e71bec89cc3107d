"""Scores of single videos as evaluation computes them, to the bit.

The last bits of a float32 product depend on its shape: BLAS libraries multiply by one vector, or by few, in another
order than by a block of many. An engine therefore finds candidates by whatever product is fastest, and these are scored
here by one whose shape is large enough to round as those of evaluation. It follows that a query has the same result
whatever other queries it is scored with.

Letters: q queries, C candidates, c of one length, L frames of each, D width, V videos, n frames of a video.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import accumulate, groupby

import torch
from torch import Tensor

from method.evaluation.corpus import Corpus
from method.evaluation.metrics import FUSED, non_finite_score
from method.evaluation.scorer import Scorer, ScoringSettings
from method.ops.precision import matmul_precision
from method.runtime.errors import InputError
from method.serving.engines import Found

_ROUNDING = 4e-6  # of a cosine: ten times what was ever found
_LEAST = 16  # rows and columns from which on all products round alike
_FRAMES = 16384  # of candidates scored at a time

Scored = tuple[dict[str, Tensor], dict[str, Tensor]]


def rounding(scores: Tensor) -> float:
    """How far two products may differ on scores of this magnitude, at most."""
    return _ROUNDING * max(1.0, float(scores.abs().max()))


class Videos:
    """The videos of several corpora, one after another, on one device.

    Args:
        corpora: with the same branches.
        settings: how to score.
        device: where to compute; embeddings are moved there.
    """

    def __init__(self, corpora: Sequence[Corpus], settings: ScoringSettings, device: torch.device) -> None:
        self.corpora = [corpus.to(device) for corpus in corpora]
        self.settings = settings
        self._scorers = [Scorer(corpus, settings) for corpus in self.corpora if corpus.video_ids]
        self.query_block = min((scorer.query_block for scorer in self._scorers), default=1)
        self.starts = list(accumulate((len(corpus.video_ids) for corpus in corpora), initial=0))

    @cached_property
    def ids(self) -> list[str]:
        """Ids of all videos."""
        return [video_id for corpus in self.corpora for video_id in corpus.video_ids]

    def __len__(self) -> int:
        return self.starts[-1]

    def frames(self, index: int) -> dict[str, Tensor]:
        """Frame embeddings (n, D) of each branch of one video, in float32."""
        corpus = bisect_right(self.starts, index) - 1
        return self.corpora[corpus].video(index - self.starts[corpus])

    def scan(self, vectors: Mapping[str, Tensor]) -> Tensor:
        """Fused scores (q, V) of at most `query_block` queries, within `rounding` of those of evaluation.

        InputError if a score of a branch is not finite.
        """
        any_qD = next(iter(vectors.values()))
        parts = [any_qD.new_empty(len(any_qD), 0)]
        for scorer in self._scorers:
            scores = scorer.scores(vectors)
            bad = non_finite_score(scores)
            if bad is not None:
                raise InputError(f"the {bad} scores are not finite: the weights or features are broken")
            parts.append(scores[FUSED])
        return torch.cat(parts, 1)

    def score(self, vectors: Mapping[str, Tensor], candidates: Sequence[int]) -> Scored:
        """Scores (C,) of each branch and fused for one query, and the best frame (C,) of each branch; on the CPU.

        Args:
            vectors: branch -> normalised query embedding (D,).
            candidates: indices of videos.
        """
        parts = [self._score(vectors, part) for part in self._parts(candidates)]
        scores = {name: torch.cat([own[name] for own, _ in parts]) for name in vectors}
        frames = {name: torch.cat([own[name] for _, own in parts]) for name in vectors}
        return {**scores, FUSED: self.settings.fuse(scores, vectors)}, frames

    def best(self, vectors: Mapping[str, Tensor], candidates: Sequence[int], count: int) -> list[Found]:
        """The best `count` of the candidates, which are in corpus order, for one query."""
        if not candidates:
            return []
        scores, frames = self.score(vectors, candidates)
        order = scores[FUSED].argsort(descending=True, stable=True)[:count].tolist()
        rows = {name: own_C.tolist() for name, own_C in scores.items()}
        best = {name: own_C.tolist() for name, own_C in frames.items()}
        return [
            Found(
                candidates[place],
                {name: own[place] for name, own in rows.items()},
                {name: own[place] for name, own in best.items()},
            )
            for place in order
        ]

    def _parts(self, candidates: Sequence[int]) -> Iterator[Sequence[int]]:
        """Candidates whose frames fit in memory together."""
        start = frames = 0
        for place, index in enumerate(candidates):
            corpus = bisect_right(self.starts, index) - 1
            own = max(keys.lengths[index - self.starts[corpus]] for keys in self.corpora[corpus].frames.values())
            if place > start and frames + own > _FRAMES:
                yield candidates[start:place]
                start, frames = place, 0
            frames += own
        yield candidates[start:]

    def _score(self, vectors: Mapping[str, Tensor], candidates: Sequence[int]) -> Scored:
        videos = [self.frames(index) for index in candidates]
        scores, frames = {}, {}
        for name, vector_D in vectors.items():
            scores[name], frames[name] = torch.empty(len(videos)), torch.empty(len(videos), dtype=torch.long)
            with matmul_precision(self.corpora[0].frames[name].dtype):
                for places, frames_cLD in _by_length([video[name] for video in videos]):
                    best_c, frame_c = self._best(name, frames_cLD, vector_D)
                    scores[name][places], frames[name][places] = best_c.cpu(), frame_c.cpu()
        return scores, frames

    def _best(self, name: str, frames_cLD: Tensor, vector_D: Tensor) -> tuple[Tensor, Tensor]:
        repeats = -(-_LEAST // (frames_cLD.shape[0] * frames_cLD.shape[1]))
        enough_vLD = frames_cLD.repeat(repeats, 1, 1) if repeats > 1 else frames_cLD
        best_vq, frame_vq = self.settings.best(name, enough_vLD, vector_D.repeat(_LEAST, 1))
        return best_vq[: len(frames_cLD), 0], frame_vq[: len(frames_cLD), 0]


def _by_length(videos: Sequence[Tensor]) -> Iterable[tuple[list[int], Tensor]]:
    """Places of videos of one length, and their frames (c, L, D)."""
    order = sorted(range(len(videos)), key=lambda place: len(videos[place]))
    for _, members in groupby(order, key=lambda place: len(videos[place])):
        places = list(members)
        yield places, torch.stack([videos[place] for place in places])
