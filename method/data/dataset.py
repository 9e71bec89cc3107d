"""What the data workers read: batches of preprocessed features of videos and captions.

A training batch has videos with all their captions. Evaluation reads videos and captions separately, each once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Protocol

import numpy as np
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

TOKENS = "tokens"  # the table of the captions; those of the videos are called as their streams


class FeatureSource(Protocol):
    """The rows of many items as the model sees them: one stream of all videos, or the tokens of all captions."""

    def gather(self, ids: Sequence[str]) -> Ragged:
        """The rows of these items, one item after the other."""


@dataclass(frozen=True)
class HDF5Source:
    """A table that is read from its feature file and preprocessed each time.

    names: what an array of the file is called, with {} in the place of the item's id.
    preprocess: makes at most `max_rows` rows of an array.
    """

    file: FeatureFile
    names: str
    width: int
    max_rows: int
    preprocess: Callable[[FloatRows, int], Tensor]

    def read(self, item_id: str) -> Tensor:
        """The rows of one item, (n, D)."""
        return self.preprocess(self.file.read(self.names.format(item_id), self.width), self.max_rows)

    def gather(self, ids: Sequence[str]) -> Ragged:
        """The rows of these items, one item after the other."""
        return Ragged.of([self.read(item_id) for item_id in ids])


@dataclass(frozen=True)
class FeatureReader:
    """Reads videos and captions as the model sees them.

    streams: branch -> (name of the feature stream, its width).
    cached: tables that take the place of the feature files, by the names of their streams or TOKENS.
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
        """What the feature files hold, by the names of the streams or TOKENS."""
        tables = {
            key: HDF5Source(self.videos, f"{{}}/{key}", width, self.max_frames, preprocess_stream)
            for key, width in self.streams.values()
        }
        return {**tables, TOKENS: HDF5Source(self.texts, "{}", self.query_width, self.max_tokens, preprocess_query)}

    def source(self, key: str) -> FeatureSource:
        """The table of a stream or TOKENS, the cached one where there are two."""
        return self.cached.get(key) or self.hdf5_sources[key]

    def read_video(self, video_id: str) -> dict[str, Tensor]:
        """The stream of each branch, (n, I) with n at most max_frames, from the feature file."""
        tables = self.hdf5_sources
        read = {key: tables[key].read(video_id) for key in tables if key != TOKENS}
        return {branch: read[key] for branch, (key, _) in self.streams.items()}

    def read_query(self, caption_id: str) -> Tensor:
        """Token features (w, Dq) with w at most max_tokens, from the feature file."""
        return self.hdf5_sources[TOKENS].read(caption_id)

    def gather_videos(self, video_ids: Sequence[str]) -> dict[str, Ragged]:
        """The streams of these videos for each branch."""
        gathered = {key: self.source(key).gather(video_ids) for key in dict(self.streams.values())}
        return {branch: gathered[key] for branch, (key, _) in self.streams.items()}

    def gather_queries(self, caption_ids: Sequence[str]) -> Ragged:
        """The token features of these captions."""
        return self.source(TOKENS).gather(caption_ids)


class TrainingVideos(Dataset[VideoBatch]):
    """Videos with all their captions, and edits of these where there is a source of them; without a reader no features.

    Like those below, it gives whole batches, and returns a mistake in a file instead of raising it: what a worker
    raises reaches the user as a traceback.
    """

    def __init__(
        self, reader: FeatureReader | None, captions: Sequence[Caption], negatives: NegativeSource | None = None
    ) -> None:
        self.reader = reader
        self.negatives = negatives
        self.videos = [(video_id, tuple(own)) for video_id, own in group_by_video(captions).items()]

    def __len__(self) -> int:
        return len(self.videos)

    def __getitems__(self, drawn: EpochIndices) -> VideoBatch | InputError:
        """A batch of the videos at the places that an epoch has drawn."""
        videos = [self.videos[place] for place in drawn.indices]
        video_ids, captions = tuple(video_id for video_id, _ in videos), tuple(chain(*(own for _, own in videos)))
        labels_Q = torch.repeat_interleave(torch.tensor([len(own) for _, own in videos]))
        batch = VideoBatch(video_ids, {}, captions, None, labels_Q)
        try:
            if self.reader is not None:
                batch = with_features(batch, self.reader)
            if self.negatives is not None:
                batch = replace(batch, edits=self.negatives.prepare(captions, drawn.epoch))
        except InputError as error:
            return error
        return batch


def with_features(batch: VideoBatch, reader: FeatureReader) -> VideoBatch:
    """The batch with the features of its videos and captions."""
    tokens = reader.gather_queries([caption.id for caption in batch.captions])
    return replace(batch, streams=reader.gather_videos(batch.video_ids), tokens=tokens)


class CorpusVideos(Dataset[VideoBatch]):
    """Videos to be searched."""

    def __init__(self, reader: FeatureReader, video_ids: Sequence[str]) -> None:
        self.reader = reader
        self.video_ids = list(video_ids)

    def __len__(self) -> int:
        return len(self.video_ids)

    def __getitems__(self, places: Sequence[int]) -> VideoBatch | InputError:
        """A batch of the videos at these places."""
        video_ids = tuple(self.video_ids[place] for place in places)
        try:
            streams = self.reader.gather_videos(video_ids)
        except InputError as error:
            return error
        return VideoBatch(video_ids, streams, (), None, torch.empty(0, dtype=torch.long))


class Queries(Dataset[QueryBatch]):
    """Captions to search with."""

    def __init__(self, reader: FeatureReader, captions: Sequence[Caption]) -> None:
        self.reader = reader
        self.captions = list(captions)

    def __len__(self) -> int:
        return len(self.captions)

    def __getitems__(self, places: Sequence[int]) -> QueryBatch | InputError:
        """A batch of the captions at these places."""
        captions = tuple(self.captions[place] for place in places)
        try:
            return QueryBatch(captions, self.reader.gather_queries([caption.id for caption in captions]))
        except InputError as error:
            return error


def split_holdout(captions: Sequence[Caption], fraction: float, seed: int) -> tuple[list[Caption], list[Caption]]:
    """Split captions into those of the training and of the held-out videos, both in their old order.

    The share is of the videos, drawn by the seed alone. InputError when it leaves one side without a video.
    """
    videos = list(group_by_video(captions))
    count = round(fraction * len(videos))
    if fraction and not 0 < count < len(videos):
        raise InputError(f"--holdout_fraction {fraction}: holds out {count} of {len(videos)} training videos")
    drawn = np.random.default_rng([seed, 0x401D]).permutation(len(videos))[:count]
    held_out = {videos[index] for index in drawn}
    training = [caption for caption in captions if caption.video_id not in held_out]
    return training, [caption for caption in captions if caption.video_id in held_out]
