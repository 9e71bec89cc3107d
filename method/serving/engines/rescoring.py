"""Scores of single videos as evaluation computes them, to the bit.

An engine finds candidates by whatever product is fastest, and these are scored here by `ScoringSettings.best`. It
follows that a query has the same result whatever other queries it is scored with.

Letters: q queries, C candidates, c of one length, L frames of each, D width, V videos, n frames of a video.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby

import torch
from torch import Tensor

from method.evaluation.corpus import Corpus
from method.evaluation.metrics import FUSED, non_finite_score
from method.evaluation.scorer import Scorer, ScoringSettings
from method.runtime.errors import InputError
from method.serving.engines import Found

_ROUNDING = 4e-6  # of a cosine: ten times what was ever found
_FRAMES = 16384  # of candidates scored at a time
_QUERIES = 64  # scored at a time

Scored = tuple[dict[str, Tensor], dict[str, Tensor]]


def rounding(scores: Tensor) -> float:
    """How far two products may differ on scores of this magnitude, at most."""
    return _ROUNDING * max(1.0, float(scores.abs().max()))


def require_best_frames(settings: ScoringSettings, engine: str) -> None:
    """InputError for a branch whose head scores in a way of its own, which this engine cannot."""
    if heads := [*settings.heads]:
        raise InputError(
            f"--engine {engine}: the branch {heads[0]} does not score by its best frame; expected --engine exact"
        )


class Videos:
    """The videos of a corpus on one device.

    Args:
        corpus: the videos.
        settings: how to score.
        device: where to compute; embeddings are moved there.
    """

    def __init__(self, corpus: Corpus, settings: ScoringSettings, device: torch.device) -> None:
        self.corpus, self.settings = corpus.to(device), settings
        self._scorer = Scorer(self.corpus, settings, roughly=True) if settings.heads else None
        self._query_block = min(_QUERIES, self._scorer.query_block) if self._scorer else _QUERIES

    @property
    def ids(self) -> list[str]:
        """Ids of all videos."""
        return self.corpus.video_ids

    def __len__(self) -> int:
        return len(self.ids)

    def frames(self, index: int) -> dict[str, Tensor]:
        """Frame embeddings (n, D) of each branch of one video, in float32."""
        return self.corpus.video(index)

    def scan(self, vectors: Mapping[str, Tensor]) -> Iterator[Tensor]:
        """Fused scores (V,) of one query after the other, within `rounding` of those of evaluation.

        InputError if a score of a branch is not finite.
        """
        queries = len(next(iter(vectors.values())))
        for start in range(0, queries, self._query_block):
            yield from self._scan({name: own_QD[start : start + self._query_block] for name, own_QD in vectors.items()})

    def _scan(self, vectors: Mapping[str, Tensor]) -> Tensor:
        """Fused scores (q, V) of a block of queries."""
        if self._scorer is not None:
            scores = self._scorer.scores(vectors)
        else:
            frames = self.corpus.frames
            scores = {name: frames[name].highest_dots(own_qD).t() for name, own_qD in vectors.items()}
            scores[FUSED] = self.settings.fuse(scores, vectors)
        bad = non_finite_score(scores)
        if bad is not None:
            raise InputError(f"the {bad} scores are not finite: the weights or features are broken")
        return scores[FUSED].contiguous()

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
            own = max(keys.lengths[index] for keys in self.corpus.frames.values())
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
            for places, frames_cLD in _by_length([video[name] for video in videos]):
                best_c1, frame_c1 = self.settings.best(name, frames_cLD, vector_D[None])
                scores[name][places], frames[name][places] = best_c1[:, 0].cpu(), frame_c1[:, 0].cpu()
        return scores, frames


def _by_length(videos: Sequence[Tensor]) -> Iterable[tuple[list[int], Tensor]]:
    """Places of videos of one length, and their frames (c, L, D)."""
    order = sorted(range(len(videos)), key=lambda place: len(videos[place]))
    for _, members in groupby(order, key=lambda place: len(videos[place])):
        places = list(members)
        yield places, torch.stack([videos[place] for place in places])
