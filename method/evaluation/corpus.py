"""Encode a corpus once, a set of queries once, and score them against each other in blocks.

With `precision` 'bf16' or 'fp16' the encoders compute in it, and keys and vectors are rounded to it; keys are also kept
in it and take half the memory. Scores are float32 sums of exact products even so: scores in half precision would make
ties of videos that differ, and a tie counts against the caption.

Letters: Q queries, q queries of a block, V videos, v videos of a block, L frames, D width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from method.data.batch import QueryBatch, VideoBatch
from method.data.captions import Caption
from method.evaluation.frame_keys import FrameKeys, SameLength
from method.evaluation.row_buffer import KeptRows
from method.evaluation.sharding import items_of_all, own_part, rows_of_all
from method.model.retrieval import RetrievalModel
from method.model.scoring import fuse, normalized
from method.ops.precision import PRECISIONS, autocast, matmul_precision
from method.runtime.processes import SINGLE_PROCESS, Processes
from method.runtime.progress import progress_bar

_BYTES = 4  # float32
_MAX_QUERY_BLOCK = 1024
# Enough to keep a GPU busy, and near enough to a CPU's caches for the maximum over what was just computed.
_MAX_PRODUCT = 16 * 2**20


@dataclass(frozen=True)
class Corpus:
    """Videos ready to be searched: the keys of their frames for each branch.

    They stay on one device: 17,435 videos of 128 frames take 6.4 GiB of it, in half precision half of that.
    """

    video_ids: list[str]
    keys: dict[str, FrameKeys]

    def video(self, place: int) -> dict[str, Tensor]:
        """Frame keys (n, D) of each branch of one video, by its place in `video_ids`."""
        return {name: keys.video(place) for name, keys in self.keys.items()}

    def to(self, device: torch.device | str) -> Corpus:
        """The same videos on another device."""
        return Corpus(self.video_ids, {name: keys.to(device) for name, keys in self.keys.items()})


@dataclass(frozen=True)
class QuerySet:
    """Captions ready to search with: normalised vectors (Q, D), float32, of each branch."""

    captions: list[Caption]
    vectors: dict[str, Tensor]

    def part(self, places: slice | Sequence[int]) -> QuerySet:
        """Some of the captions."""
        captions = self.captions[places] if isinstance(places, slice) else [self.captions[place] for place in places]
        return QuerySet(captions, {name: vectors_QD[places] for name, vectors_QD in self.vectors.items()})


@torch.inference_mode()
def encode_corpus(
    model: RetrievalModel,
    batches: Iterable[VideoBatch],
    device: torch.device,
    precision: str = "off",
    processes: Processes = SINGLE_PROCESS,
) -> Corpus:
    """Encode every video once; the keys stay on `device`. Of several processes each gives some and gets all."""
    video_ids: list[str] = []
    kept = {name: _kept_rows(model, PRECISIONS[precision], device) for name in model.branches}
    lengths: dict[str, list[int]] = {name: [] for name in model.branches}
    with processes.raise_on_all():
        for batch in progress_bar(batches, "videos", "batch"):
            video_ids += batch.video_ids
            with autocast(device, precision):
                encoded = model.encode_videos(batch.to(device).streams)
            for name, keys in encoded.items():
                kept[name].append(normalized(keys).values)
                lengths[name] += keys.layout.lengths
    joined = {
        name: FrameKeys.join(rows_of_all(own, processes), items_of_all(lengths[name], processes))
        for name, own in kept.items()
    }
    return Corpus(items_of_all(video_ids, processes), joined)


@torch.inference_mode()
def encode_queries(
    model: RetrievalModel,
    batches: Iterable[QueryBatch],
    device: torch.device,
    precision: str = "off",
    processes: Processes = SINGLE_PROCESS,
) -> QuerySet:
    """Encode every caption once; the vectors stay on `device`. Of several processes each gives some, gets all."""
    captions: list[Caption] = []
    kept = {name: _kept_rows(model, torch.float32, device) for name in model.branches}
    with processes.raise_on_all():
        for batch in progress_bar(batches, "queries", "batch"):
            captions += batch.captions
            with autocast(device, precision):
                encoded = model.encode_queries(batch.to(device).words)
            for name, vectors_qD in encoded.items():
                unit_qD = torch.nn.functional.normalize(vectors_qD.float(), dim=-1)
                kept[name].append(unit_qD.to(PRECISIONS[precision]))
    vectors = {name: torch.cat(list(rows_of_all(own, processes))) for name, own in kept.items()}
    return QuerySet(items_of_all(captions, processes), vectors)


def _kept_rows(model: RetrievalModel, dtype: torch.dtype, device: torch.device) -> KeptRows:
    return KeptRows(model.architecture.hidden_size, dtype, device)


class Scorer:
    """Scores of queries against every video of a corpus by its best frame, in blocks of bounded memory.

    Args:
        corpus: the videos; their keys are not copied.
        memory_mb: MiB for a product and for the scores of the queries of a block, and of the block before, against all
            videos. The smaller it is, the fewer queries make a block and the more often the keys are read. What the
            libraries that multiply take for themselves comes on top: 130 MiB on a CPU with keys in half precision.
    """

    def __init__(self, corpus: Corpus, memory_mb: int) -> None:
        self.corpus = corpus
        budget = memory_mb * 2**20
        product = min(_MAX_PRODUCT, budget // 2)
        # Of two blocks the branches and their fused score; of one a copy to keep and, a byte each, what outranks.
        bytes_a_score = 2 * _BYTES * (len(corpus.keys) + 1) + _BYTES + 1
        by_scores = (budget - product) // (bytes_a_score * max(len(corpus.video_ids), 1))
        longest = max((max(keys.lengths) for keys in corpus.keys.values()), default=1)
        self.query_block = max(1, min(_MAX_QUERY_BLOCK, by_scores, product // (_BYTES * (longest + 1))))
        self._blocks = {name: list(self._video_blocks(keys, product)) for name, keys in corpus.keys.items()}

    def _video_blocks(self, keys: FrameKeys, product: int) -> Iterator[SameLength]:
        for group in keys.groups:
            length, width = group.keys_vLD.shape[1:]
            # A frame has its dot products, and its key in float32 where it was kept in half precision.
            columns = self.query_block + (width if keys.values.dtype != torch.float32 else 0)
            yield from group.split(max(1, product // (_BYTES * (length * columns + self.query_block))))

    def scores(self, vectors: Mapping[str, Tensor], fusion_weight: float) -> dict[str, Tensor]:
        """Scores of one block of query vectors (q, D) against all videos: (q, V) for each branch and 'fused'."""
        scores = {name: self._best(name, vectors_qD).t() for name, vectors_qD in vectors.items()}
        return {**scores, "fused": fuse(scores, fusion_weight)}

    def scores_and_frames(
        self, vectors: Mapping[str, Tensor], fusion_weight: float
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What `scores` gives, and for each branch the frame (q, V) that has the score, the first of equals.

        From the same products; to find the frames costs a third of these on a CPU, so that only who needs them asks.
        """
        frames = {
            name: torch.empty(len(self.corpus.video_ids), len(vectors_qD), dtype=torch.long, device=vectors_qD.device)
            for name, vectors_qD in vectors.items()
        }
        scores = {name: self._best(name, vectors_qD, frames[name]).t() for name, vectors_qD in vectors.items()}
        return {**scores, "fused": fuse(scores, fusion_weight)}, {name: own_Vq.t() for name, own_Vq in frames.items()}

    def _best(self, name: str, vectors_qD: Tensor, frames_Vq: Tensor | None = None) -> Tensor:
        """Largest dot product among the frames of each video (V, q); its frame goes into `frames_Vq`."""
        scores_Vq = vectors_qD.new_empty(len(self.corpus.video_ids), len(vectors_qD))
        with matmul_precision(self.corpus.keys[name].values.dtype):
            for block in self._blocks[name]:
                dots_rq = block.keys_vLD.flatten(0, 1).float() @ vectors_qD.t()  # r = v * L
                dots_vLq = dots_rq.unflatten(0, block.keys_vLD.shape[:2])
                if frames_Vq is None:
                    best_vq = dots_vLq.amax(1)
                else:
                    best_vq, frames_vq = dots_vLq.max(1)
                    frames_Vq.index_copy_(0, block.places_v, frames_vq)
                scores_Vq.index_copy_(0, block.places_v, best_vq)
        return scores_Vq

    @torch.inference_mode()
    def blocks(
        self, queries: QuerySet, fusion_weight: float, processes: Processes = SINGLE_PROCESS
    ) -> Iterator[tuple[slice, dict[str, Tensor]]]:
        """Scores of all queries, a block of them at a time: which queries, and (q, V) for each branch and 'fused'.

        Of several processes each gets its part of the blocks.
        """
        starts = range(0, len(queries.captions), self.query_block)
        starts = starts[own_part(len(starts), processes)]
        for start in progress_bar(starts, "scores", "block"):
            part = slice(start, min(start + self.query_block, len(queries.captions)))
            yield part, self.scores(queries.part(part).vectors, fusion_weight)
