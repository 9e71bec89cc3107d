"""Encode a corpus once and a set of queries once.

With `precision` 'bf16' or 'fp16' the encoders run in it, and embeddings are rounded to it; frame embeddings are also
stored in it and take half the memory. Scores are float32 sums of exact products even so, see
`method.evaluation.scorer`.

Letters: Q queries, q queries of a batch, n frames of a video, D width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from method.data.batch import QueryBatch, VideoBatch
from method.data.captions import Caption
from method.data.ragged import MANY_ROWS, Ragged
from method.evaluation.frame_embeddings import FrameEmbeddings
from method.evaluation.row_buffer import RowBuffer
from method.evaluation.sharding import all_gather_items, all_gather_rows
from method.model.retrieval import RetrievalModel
from method.model.scoring import normalized
from method.ops.precision import PRECISIONS, autocast
from method.runtime import hardware
from method.runtime.errors import InputError
from method.runtime.processes import SINGLE_PROCESS, Processes
from method.runtime.progress import progress_bar


@dataclass(frozen=True)
class Corpus:
    """Videos ready to be searched.

    They stay on one device: 17,435 videos of 128 frames take 6.4 GiB of it, in half precision half of that.

    video_ids: the videos in corpus order. frames: branch -> frame embeddings.
    """

    video_ids: list[str]
    frames: dict[str, FrameEmbeddings]

    def video(self, index: int) -> dict[str, Tensor]:
        """Frame embeddings (n, D) of each branch of one video."""
        return {name: frames.video(index) for name, frames in self.frames.items()}

    def joined(self, other: Corpus) -> Corpus:
        """The same videos with the branches of another model, too."""
        if self.video_ids != other.video_ids or self.frames.keys() & other.frames.keys():
            raise ValueError("the models must encode the same videos with branches of different names")
        return Corpus(self.video_ids, {**self.frames, **other.frames})

    def select(self, indices: Sequence[int]) -> Corpus:
        """Some of the videos, in this order; their frames stay where they are."""
        ids = [self.video_ids[index] for index in indices]
        return Corpus(ids, {name: frames.select(indices) for name, frames in self.frames.items()})

    def to(self, device: torch.device | str) -> Corpus:
        """The same videos on another device."""
        return Corpus(self.video_ids, {name: frames.to(device) for name, frames in self.frames.items()})


@dataclass(frozen=True)
class QuerySet:
    """Captions ready to search with: normalised embeddings (Q, D), float32, of each branch."""

    captions: list[Caption]
    vectors: dict[str, Tensor]

    def joined(self, other: QuerySet) -> QuerySet:
        """The same captions with the branches of another model, too."""
        if self.captions != other.captions or self.vectors.keys() & other.vectors.keys():
            raise ValueError("the models must encode the same captions with branches of different names")
        return QuerySet(self.captions, {**self.vectors, **other.vectors})

    def subset(self, indices: slice | Sequence[int]) -> QuerySet:
        """Some of the captions."""
        captions = self.captions[indices] if isinstance(indices, slice) else [self.captions[i] for i in indices]
        return QuerySet(captions, {name: vectors_QD[indices] for name, vectors_QD in self.vectors.items()})


def target_indices(corpus: Corpus, queries: QuerySet) -> Tensor:
    """Index of each caption's video in the corpus, (Q,), on the device of the queries.

    InputError without captions, and for a caption whose video is missing or occurs twice.
    """
    index_of = {video_id: index for index, video_id in enumerate(corpus.video_ids)}
    if len(index_of) < len(corpus.video_ids):
        twice = next(video_id for video_id, count in Counter(corpus.video_ids).items() if count > 1)
        raise InputError(f"video {twice!r} is among the evaluated videos more than once")
    lost = [caption.id for caption in queries.captions if caption.video_id not in index_of]
    if lost:
        raise InputError(f"caption {lost[0]!r}: its video is not among the {len(index_of)} evaluated videos")
    if not queries.captions:
        raise InputError("no captions to evaluate")
    device = next(iter(queries.vectors.values())).device
    return hardware.to_device_async(torch.tensor([index_of[caption.video_id] for caption in queries.captions]), device)


@torch.inference_mode()
def encode_corpus(
    model: RetrievalModel,
    batches: Iterable[VideoBatch],
    device: torch.device,
    precision: str = "off",
    processes: Processes = SINGLE_PROCESS,
) -> Corpus:
    """Encode every video once; the embeddings stay on `device`. Each process encodes its batches and gets all."""
    video_ids: list[str] = []
    buffers = {name: _row_buffer(model, PRECISIONS[precision], device) for name in model.branches}
    lengths: dict[str, list[int]] = {name: [] for name in model.branches}
    with processes.raise_on_all():
        for batch in progress_bar(batches, "videos", "batch"):
            video_ids += batch.video_ids
            with autocast(device, precision):
                encoded = model.encode_videos(_with_many_rows(batch.to(device).streams))
            for name, all_videos in encoded.items():
                videos = all_videos.first(len(batch.video_ids))
                by_cosine = model.branch(name).scores_by_cosine
                buffers[name].append(normalized(videos).values if by_cosine else videos.values)
                lengths[name] += videos.layout.lengths
    frames = {
        name: FrameEmbeddings.join(all_gather_rows(own, processes), all_gather_items(lengths[name], processes))
        for name, own in buffers.items()
    }
    return Corpus(all_gather_items(video_ids, processes), frames)


@torch.inference_mode()
def encode_queries(
    model: RetrievalModel,
    batches: Iterable[QueryBatch],
    device: torch.device,
    precision: str = "off",
    processes: Processes = SINGLE_PROCESS,
) -> QuerySet:
    """Encode every caption once; the embeddings stay on `device`. Each process encodes its batches and gets all."""
    captions: list[Caption] = []
    buffers = {name: _row_buffer(model, torch.float32, device) for name in model.branches}
    with processes.raise_on_all():
        for batch in progress_bar(batches, "queries", "batch"):
            captions += batch.captions
            tokens = batch.to(device).tokens
            with autocast(device, precision):
                encoded = model.encode_queries(tokens.with_last_repeated(_copies(tokens)))  # as in _with_many_rows
            for name, vectors_qD in encoded.items():
                stored_qD = vectors_qD[: len(batch.captions)].float()
                if model.branch(name).scores_by_cosine:
                    stored_qD = torch.nn.functional.normalize(stored_qD, dim=-1)
                buffers[name].append(stored_qD.to(PRECISIONS[precision]))
    vectors = {name: torch.cat(list(all_gather_rows(own, processes))) for name, own in buffers.items()}
    return QuerySet(all_gather_items(captions, processes), vectors)


def _with_many_rows(streams: Mapping[str, Ragged]) -> dict[str, Ragged]:
    """Videos with so many copies of the last that few rows are never multiplied, not even in the last chunk.

    On a CPU, the embeddings of a video are then the same, to the bit, whatever it is encoded with.
    """
    copies = max(map(_copies, streams.values()))
    return {name: rows.with_last_repeated(copies) for name, rows in streams.items()}


def _copies(rows: Ragged) -> int:
    """How many copies of the last sequence make, with it, `MANY_ROWS` rows."""
    return -(-MANY_ROWS // rows.layout.valid[-1]) - 1


def _row_buffer(model: RetrievalModel, dtype: torch.dtype, device: torch.device) -> RowBuffer:
    return RowBuffer(model.architecture.hidden_size, dtype, device)
