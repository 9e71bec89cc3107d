"""Datasets of whole batches: videos with all their captions for training, videos and captions separately otherwise.

Letters: n frames, w tokens, N rows in total, D, I, Dq widths.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from method.data.batch import EpochIndices, QueryBatch, VideoBatch
from method.data.captions import Caption, group_by_video
from method.data.edits import NegativeSource
from method.data.features import FeatureFile
from method.data.preprocessing import FloatRows, preprocess_query, preprocess_stream
from method.data.ragged import Ragged
from method.runtime.errors import InputError

TOKENS = "tokens"  # key of the captions' source; those of videos have the keys of their streams


class FeatureSource(Protocol):
    """Preprocessed features of many items: one stream of all videos, or the tokens of all captions."""

    def gather(self, ids: Sequence[str]) -> Ragged:
        """The features of these items, in this order."""


@dataclass(frozen=True)
class HDF5Source:
    """Reads features from a feature file and preprocesses them, each time.

    names: name of an item's array, with {} for its id.
    preprocess: called with an array and `max_rows`; returns at most so many rows.
    """

    file: FeatureFile
    names: str
    width: int
    max_rows: int
    preprocess: Callable[[FloatRows, int], Tensor]

    def read(self, item_id: str) -> Tensor:
        """The features of one item, (n, D)."""
        return self.preprocess(self.file.read(self.names.format(item_id), self.width), self.max_rows)

    def gather(self, ids: Sequence[str]) -> Ragged:
        """The features of these items, in this order."""
        return Ragged.of([self.read(item_id) for item_id in ids])


@dataclass(frozen=True)
class FeatureReader:
    """Reads preprocessed features of videos and captions.

    streams: branch -> (key of its feature stream, width).
    cached: faster sources that replace the feature files, by key.
    """

    videos: FeatureFile
    texts: FeatureFile
    streams: Mapping[str, tuple[str, int]]
    query_width: int
    max_frames: int
    max_tokens: int
    cached: Mapping[str, FeatureSource] = field(default_factory=dict)

    @property
    def hdf5_sources(self) -> dict[str, HDF5Source]:
        """The feature files as sources, by key."""
        sources = {
            key: HDF5Source(self.videos, f"{{}}/{key}", width, self.max_frames, preprocess_stream)
            for key, width in self.streams.values()
        }
        return {**sources, TOKENS: HDF5Source(self.texts, "{}", self.query_width, self.max_tokens, preprocess_query)}

    def source(self, key: str) -> FeatureSource:
        """The source of a stream or of TOKENS, cached if possible."""
        return self.cached.get(key) or self.hdf5_sources[key]

    def read_video(self, video_id: str) -> dict[str, Tensor]:
        """Branch -> frames (n, I) of a video, at most max_frames, from the feature file."""
        sources = self.hdf5_sources
        read = {key: sources[key].read(video_id) for key in sources if key != TOKENS}
        return {branch: read[key] for branch, (key, _) in self.streams.items()}

    def read_query(self, caption_id: str) -> Tensor:
        """Token features (w, Dq) of a caption, at most max_tokens, from the feature file."""
        return self.hdf5_sources[TOKENS].read(caption_id)

    def gather_videos(self, video_ids: Sequence[str]) -> dict[str, Ragged]:
        """Branch -> frames of these videos."""
        gathered = {key: self.source(key).gather(video_ids) for key in dict(self.streams.values())}
        return {branch: gathered[key] for branch, (key, _) in self.streams.items()}

    def gather_queries(self, caption_ids: Sequence[str]) -> Ragged:
        """Token features of these captions."""
        return self.source(TOKENS).gather(caption_ids)


class TrainingVideos(Dataset[VideoBatch]):
    """Batches of videos with all their captions, and hard negatives if there is a source of them.

    Without a reader, batches have no features; `with_features` adds them later. Hard negatives begin at
    `negatives_from`, an epoch.

    `__getitems__` returns an InputError instead of raising it, here and below: an exception in a worker would reach the
    user as a traceback.
    """

    def __init__(
        self,
        reader: FeatureReader | None,
        captions: Sequence[Caption],
        negatives: NegativeSource | None = None,
        negatives_from: int = 0,
    ) -> None:
        self.reader = reader
        self.negatives = negatives
        self.negatives_from = negatives_from
        self.videos = [(video_id, tuple(own)) for video_id, own in group_by_video(captions).items()]

    def __len__(self) -> int:
        return len(self.videos)

    def __getitems__(self, drawn: EpochIndices) -> VideoBatch | InputError:
        """The batch of these videos."""
        videos = [self.videos[index] for index in drawn.indices]
        video_ids, captions = tuple(video_id for video_id, _ in videos), tuple(chain(*(own for _, own in videos)))
        labels_Q = torch.repeat_interleave(torch.tensor([len(own) for _, own in videos]))
        batch = VideoBatch(video_ids, {}, captions, None, labels_Q)
        try:
            if self.reader is not None:
                batch = with_features(batch, self.reader)
            if self.negatives is not None and drawn.epoch >= self.negatives_from:
                batch = replace(batch, edits=self.negatives.prepare(captions, drawn.epoch))
        except InputError as error:
            return error
        return batch


def with_features(batch: VideoBatch, reader: FeatureReader) -> VideoBatch:
    """Add the features of the videos and captions to a batch."""
    tokens = reader.gather_queries([caption.id for caption in batch.captions])
    return replace(batch, streams=reader.gather_videos(batch.video_ids), tokens=tokens)


class CorpusVideos(Dataset[VideoBatch]):
    """Batches of videos without captions."""

    def __init__(self, reader: FeatureReader, video_ids: Sequence[str]) -> None:
        self.reader = reader
        self.video_ids = list(video_ids)

    def __len__(self) -> int:
        return len(self.video_ids)

    def __getitems__(self, indices: Sequence[int]) -> VideoBatch | InputError:
        """The batch of these videos."""
        video_ids = tuple(self.video_ids[index] for index in indices)
        try:
            streams = self.reader.gather_videos(video_ids)
        except InputError as error:
            return error
        return VideoBatch(video_ids, streams, (), None, torch.empty(0, dtype=torch.long))


class Queries(Dataset[QueryBatch]):
    """Batches of captions."""

    def __init__(self, reader: FeatureReader, captions: Sequence[Caption]) -> None:
        self.reader = reader
        self.captions = list(captions)

    def __len__(self) -> int:
        return len(self.captions)

    def __getitems__(self, indices: Sequence[int]) -> QueryBatch | InputError:
        """The batch of these captions."""
        captions = tuple(self.captions[index] for index in indices)
        try:
            return QueryBatch(captions, self.reader.gather_queries([caption.id for caption in captions]))
        except InputError as error:
            return error
