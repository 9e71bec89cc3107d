"""Score queries against a corpus in blocks of bounded memory: by each video's best frame, or as the model's head does.

Scores are float32 sums of exact products even where the embeddings are in half precision: scores in half precision
would tie videos that differ, and a tie counts against the caption.

Letters: Q queries, q queries of a block, V videos, v videos of a block, L frames, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from method.config.settings import EvaluationSettings
from method.data.ragged import MANY_ROWS, Layout, Ragged
from method.evaluation.corpus import Corpus, QuerySet
from method.evaluation.frame_embeddings import FrameEmbeddings, LengthBucket
from method.evaluation.metrics import FUSED
from method.evaluation.sharding import shard
from method.model.branch_spec import fused_weights
from method.model.query_weights import QueryWeights
from method.model.retrieval import RetrievalModel
from method.model.scoring import Similarity, fuse
from method.ops.precision import matmul_precision
from method.runtime.errors import InputError
from method.runtime.processes import SINGLE_PROCESS, Processes
from method.runtime.progress import progress_bar

_BYTES = 4  # float32
_MAX_QUERY_BLOCK = 1024
# Large enough to keep a GPU busy, small enough that a CPU takes the maximum from its cache.
_MAX_PRODUCT = 16 * 2**20


@dataclass(frozen=True)
class ScoringSettings:
    """How evaluation and search score.

    weights: branch -> weight in the fused score, summing to 1.
    memory_mb: MiB for a block of scores; embeddings come on top.
    precision: 'off', 'bf16' or 'fp16', of the encoders and embeddings; scores are float32.
    query_weights: of the model, where the weights of its branches depend on the query.
    heads: `Branch.score` of every branch whose head scores in a way of its own, instead of by the best cosine.
    fusion_weight: of the action branch, if the weights were made from it.
    """

    weights: Mapping[str, float]
    memory_mb: int = 512
    precision: str = "off"
    query_weights: QueryWeights | None = None
    heads: Mapping[str, Callable[[Ragged, Tensor], Similarity]] = field(default_factory=dict)
    fusion_weight: float | None = None

    @classmethod
    def of(cls, settings: EvaluationSettings, model: RetrievalModel) -> ScoringSettings:
        """The settings for a model. InputError when all weights are 0."""
        try:
            weights = fused_weights(model.architecture.branches, settings.fusion_weight)
        except ValueError as error:
            raise InputError(f"--fusion_weight {settings.fusion_weight}: {error}") from error
        names = [name for name in model.branches if not model.branch(name).scores_by_cosine]
        heads = {name: model.branch(name).score for name in names}
        return cls(weights, settings.memory_mb, settings.precision, model.query_weights, heads, settings.fusion_weight)

    def with_branch(self, name: str, weight: float) -> ScoringSettings:
        """The same with another branch, whose cosine has this weight; the weights of the others sum to the rest.

        InputError if there is a branch of this name.
        """
        if name in self.weights:
            raise InputError(f"the model has a branch {name} of its own, so that no other can be added")
        weights = {other: own * (1 - weight) for other, own in self.weights.items()}
        return replace(self, weights={**weights, name: weight})

    def fuse(self, scores: Mapping[str, Tensor], vectors: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum of the branches' scores; of one branch, its scores themselves.

        Args:
            scores: branch -> scores (q, V), or (V,) of one query.
            vectors: branch -> the vectors (q, D) or (D,) of these queries.
        """
        if self.query_weights is None:
            return fuse(scores, self.weights)
        with torch.no_grad():
            own = self.query_weights.by_branch(self.query_weights(vectors, self.weights))
        like = next(iter(scores.values()))
        fixed = {name: like.new_tensor([weight]) for name, weight in self.weights.items()}
        return fuse(scores, fixed | {name: weight.to(like.device) for name, weight in own.items()})

    def best(self, name: str, frames_vLD: Tensor, vectors_qD: Tensor) -> tuple[Tensor, Tensor]:
        """Score of each video and its best frame, (v, q), for videos with L frames each.

        Few frames or queries are scored with copies of them, so that scores do not depend on what else is scored.
        """
        videos, queries = len(frames_vLD), len(vectors_qD)
        best_vq, frame_vq = self._best(name, *_many(frames_vLD, vectors_qD))
        return best_vq[:videos, :queries], frame_vq[:videos, :queries]

    def highest(self, name: str, frames_vLD: Tensor, vectors_qD: Tensor) -> Tensor:
        """The scores of `best` alone, which are found faster without the frames."""
        scores_vq = self.roughly_highest(name, *_many(frames_vLD, vectors_qD))
        return scores_vq[: len(frames_vLD), : len(vectors_qD)]

    def roughly_highest(self, name: str, frames_vLD: Tensor, vectors_qD: Tensor) -> Tensor:
        """The same, but rounded in another way if there are few frames or queries."""
        if name in self.heads:
            return self._best(name, frames_vLD, vectors_qD)[0]
        return _dots(frames_vLD, vectors_qD).amax(1)

    def timelines(self, name: str, frames_nD: Tensor, vectors_QD: Tensor) -> Tensor:
        """Score of each frame of one video as if it were the whole video, (Q, n)."""
        return self.highest(name, frames_nD[:, None], vectors_QD).t()

    def _best(self, name: str, frames_vLD: Tensor, vectors_qD: Tensor) -> tuple[Tensor, Tensor]:
        if name in self.heads:
            videos, length = frames_vLD.shape[:2]
            layout = Layout.of([length] * videos, device=frames_vLD.device)
            found = self.heads[name](Ragged(frames_vLD.flatten(0, 1).float(), layout), vectors_qD)
            return found.cosine_QB.t(), found.best_frame_QB.t().long()
        best_vq, frame_vq = _dots(frames_vLD, vectors_qD).max(1)
        return best_vq, frame_vq


def _dots(frames_vLD: Tensor, vectors_qD: Tensor) -> Tensor:
    """Dot products of all frames and queries, (v, L, q)."""
    return (frames_vLD.flatten(0, 1).float() @ vectors_qD.t()).unflatten(0, frames_vLD.shape[:2])


def _many(frames_vLD: Tensor, vectors_qD: Tensor) -> tuple[Tensor, Tensor]:
    """The frames of whole videos and the queries, each repeated if they are fewer than `MANY_ROWS`."""
    videos = -(-MANY_ROWS // max(frames_vLD.shape[0] * frames_vLD.shape[1], 1))
    queries = -(-MANY_ROWS // max(len(vectors_qD), 1))
    frames_vLD = frames_vLD.repeat(videos, 1, 1) if videos > 1 else frames_vLD
    return frames_vLD, vectors_qD.repeat(queries, 1) if queries > 1 else vectors_qD


class Scorer:
    """Scores queries against every video of a corpus by its best frame, in blocks of bounded memory.

    The smaller `settings.memory_mb`, the fewer queries make a block and the more often the embeddings are read. It
    holds a matrix product and the scores of two blocks of queries against all videos; buffers of the BLAS library come
    on top: 130 MiB on a CPU with embeddings in half precision.

    roughly: few queries take less time, and their scores are rounded in another way than those of many.
    """

    def __init__(self, corpus: Corpus, settings: ScoringSettings, roughly: bool = False) -> None:
        self.corpus = corpus
        self.settings = settings
        self._roughly = roughly
        budget = settings.memory_mb * 2**20
        product = min(_MAX_PRODUCT, budget // 2)
        # The branches' and the fused scores of two blocks; of one also a copy to write, and a byte each to compare.
        bytes_per_score = 2 * _BYTES * (len(corpus.frames) + 1) + _BYTES + 1
        by_scores = (budget - product) // (bytes_per_score * max(len(corpus.video_ids), 1))
        longest = max((max(frames.lengths) for frames in corpus.frames.values()), default=1)
        self.query_block = max(1, min(_MAX_QUERY_BLOCK, by_scores, product // (_BYTES * (longest + 1))))
        self._blocks = {name: list(self._video_blocks(frames, product)) for name, frames in corpus.frames.items()}

    def _video_blocks(self, frames: FrameEmbeddings, product: int) -> Iterator[LengthBucket]:
        for bucket in frames.buckets:
            length, width = bucket.frames_vLD.shape[1:]
            # Per frame the dot products, and a float32 copy of an embedding in half precision.
            columns = self.query_block + (width if frames.dtype != torch.float32 else 0)
            yield from bucket.split(max(1, product // (_BYTES * (length * columns + self.query_block))))

    def scores(self, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Scores of one block of query embeddings (q, D) against all videos: (q, V) of each branch and fused."""
        scores = {name: self._best(name, vectors_qD).t() for name, vectors_qD in vectors.items()}
        return {**scores, FUSED: self.settings.fuse(scores, vectors)}

    def _best(self, name: str, vectors_qD: Tensor) -> Tensor:
        """Score of each video, (V, q)."""
        scores_Vq = vectors_qD.new_empty(len(self.corpus.video_ids), len(vectors_qD))
        highest = self.settings.roughly_highest if self._roughly else self.settings.highest
        with matmul_precision(self.corpus.frames[name].dtype):
            for block in self._blocks[name]:
                scores_Vq.index_copy_(0, block.index_v, highest(name, block.frames_vLD, vectors_qD))
        return scores_Vq

    @torch.inference_mode()
    def blocks(
        self, queries: QuerySet, processes: Processes = SINGLE_PROCESS
    ) -> Iterator[tuple[slice, dict[str, Tensor]]]:
        """Score all queries block by block: the slice of queries, and (q, V) of each branch and fused.

        Each process gets its shard of the blocks.
        """
        starts = range(0, len(queries.captions), self.query_block)
        starts = starts[shard(len(starts), processes)]
        for start in progress_bar(starts, "scores", "block"):
            block = slice(start, min(start + self.query_block, len(queries.captions)))
            yield block, self.scores(queries.subset(block).vectors)
