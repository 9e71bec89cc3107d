"""Encode a corpus once, a set of queries once, and score them against each other in blocks.

Letters: Q queries, q queries of a block, V videos, v videos of a block, N frames of all videos, L frames, D width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from method.data.batch import QueryBatch, VideoBatch
from method.data.captions import Caption
from method.data.ragged import Ragged
from method.model.retrieval import RetrievalModel
from method.model.scoring import fuse, normalized
from method.progress import progress_bar

_BYTES = 4  # float32
_MAX_QUERY_BLOCK = 1024


@dataclass(frozen=True)
class Corpus:
    """Videos ready to be searched: normalised frame keys (N, D) of each branch."""

    video_ids: list[str]
    keys: dict[str, Ragged]

    def video(self, place: int) -> dict[str, Tensor]:
        """Frame keys (n, D) of each branch of one video, by its place in `video_ids`."""
        return {name: keys.values[slice(*self._rows[name][place : place + 2])] for name, keys in self.keys.items()}

    @cached_property
    def _rows(self) -> dict[str, list[int]]:
        """Branch -> where each video's rows begin, and the end of the last."""
        return {name: list(accumulate(keys.layout.lengths, initial=0)) for name, keys in self.keys.items()}


@dataclass(frozen=True)
class QuerySet:
    """Captions ready to search with: normalised vectors (Q, D) of each branch."""

    captions: list[Caption]
    vectors: dict[str, Tensor]


@torch.inference_mode()
def encode_corpus(model: RetrievalModel, batches: Iterable[VideoBatch], device: torch.device) -> Corpus:
    """Encode every video once; the keys stay on `device`."""
    video_ids: list[str] = []
    parts: dict[str, list[Ragged]] = {name: [] for name in model.branches}
    for batch in progress_bar(batches, "videos", "batch"):
        video_ids += batch.video_ids
        for name, keys in model.encode_videos(batch.to(device).streams).items():
            parts[name].append(normalized(keys))
    return Corpus(video_ids, {name: _join(batches) for name, batches in parts.items()})


@torch.inference_mode()
def encode_queries(model: RetrievalModel, batches: Iterable[QueryBatch], device: torch.device) -> QuerySet:
    """Encode every caption once; the vectors stay on `device`."""
    captions: list[Caption] = []
    parts: dict[str, list[Tensor]] = {name: [] for name in model.branches}
    for batch in progress_bar(batches, "queries", "batch"):
        captions += batch.captions
        for name, vectors_QD in model.encode_queries(batch.to(device).words).items():
            parts[name].append(torch.nn.functional.normalize(vectors_QD.float(), dim=-1))
    return QuerySet(captions, {name: torch.cat(vectors) for name, vectors in parts.items()})


def _join(batches: list[Ragged]) -> Ragged:
    lengths = [length for batch in batches for length in batch.layout.lengths]
    values = torch.cat([batch.values for batch in batches])
    return Ragged(values, type(batches[0].layout).of(lengths).to(values.device))


@dataclass(frozen=True)
class _VideoBlock:
    """Videos of similar length: their places in the corpus and their keys (v, L, D).

    Shorter ones repeat their last frame, which changes no maximum and needs no mask.
    """

    places_v: Tensor
    keys_vLD: Tensor


class Scorer:
    """Scores of queries against every video of a corpus by its best frame, in blocks of bounded memory."""

    def __init__(self, corpus: Corpus, memory_mb: int) -> None:
        self.corpus = corpus
        # Half for the scores of a block of queries against all videos, half for one product.
        self._budget = memory_mb * 2**20 // 2
        tables = len(corpus.keys) + 2  # the branches, their fused score, and room to compare
        by_budget = self._budget // (_BYTES * tables * max(len(corpus.video_ids), 1))
        self.query_block = max(1, min(_MAX_QUERY_BLOCK, by_budget))
        self._blocks = {name: list(self._video_blocks(keys)) for name, keys in corpus.keys.items()}

    def _video_blocks(self, keys: Ragged) -> Iterator[_VideoBlock]:
        lengths_V, starts_V = keys.layout.lengths_B, keys.layout.starts_B
        order = sorted(range(len(keys)), key=lambda place: -keys.layout.lengths[place])
        first = 0
        while first < len(order):
            longest = keys.layout.lengths[order[first]]
            count = max(1, self._budget // (_BYTES * longest * self.query_block))
            # Videos that are much shorter wait for a block of their own.
            places = [place for place in order[first : first + count] if 8 * keys.layout.lengths[place] >= 7 * longest]
            places_v = torch.tensor(places, device=keys.values.device)
            frames_L = torch.arange(longest, device=keys.values.device)
            rows_vL = starts_V[places_v, None] + torch.minimum(frames_L, lengths_V[places_v, None] - 1)
            yield _VideoBlock(places_v, keys.values[rows_vL])
            first += len(places)

    def scores(self, vectors: Mapping[str, Tensor], fusion_weight: float) -> dict[str, Tensor]:
        """Scores of one block of query vectors (q, D) against all videos: (q, V) for each branch and 'fused'."""
        scores = {name: self._branch_scores(name, vectors_qD) for name, vectors_qD in vectors.items()}
        return {**scores, "fused": fuse(scores, fusion_weight)}

    def _branch_scores(self, name: str, vectors_qD: Tensor) -> Tensor:
        scores_qV = vectors_qD.new_empty(len(vectors_qD), len(self.corpus.video_ids))
        for block in self._blocks[name]:
            dots_rq = block.keys_vLD.flatten(0, 1) @ vectors_qD.t()
            scores_qV[:, block.places_v] = dots_rq.view(*block.keys_vLD.shape[:2], -1).amax(1).t()
        return scores_qV

    @torch.inference_mode()
    def blocks(self, queries: QuerySet, fusion_weight: float) -> Iterator[tuple[slice, dict[str, Tensor]]]:
        """Scores of all queries, a block of them at a time: which queries, and (q, V) for each branch and 'fused'."""
        starts = range(0, len(queries.captions), self.query_block)
        for start in progress_bar(starts, "scores", "block"):
            part = slice(start, min(start + self.query_block, len(queries.captions)))
            yield part, self.scores({name: vectors[part] for name, vectors in queries.vectors.items()}, fusion_weight)
