"""What the data workers read: preprocessed features of videos and captions.

A training item is a video with all its captions. Evaluation reads videos and captions separately, each once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from method.data.captions import Caption, group_by_video
from method.data.features import ACTION_KEY, OBJECT_KEY, FeatureFile, preprocess_query, preprocess_stream
from method.errors import InputError


@dataclass(frozen=True)
class FeatureReader:
    """Reads a video or a caption as the model sees it.

    streams: branch -> (name of the feature stream, its width).
    """

    videos: FeatureFile
    texts: FeatureFile
    streams: Mapping[str, tuple[str, int]]
    query_width: int
    max_frames: int
    max_words: int

    def read_video(self, video_id: str) -> dict[str, Tensor]:
        """The stream of each branch, (n, I) with n at most max_frames."""
        read = {key: self.videos.read(f"{video_id}/{key}", width) for key, width in self.streams.values()}
        return {branch: preprocess_stream(read[key], self.max_frames) for branch, (key, _) in self.streams.items()}

    def read_query(self, caption_id: str) -> Tensor:
        """Token features (w, Dq) with w at most max_words."""
        return preprocess_query(self.texts.read(caption_id, self.query_width), self.max_words)


def stream_keys(action_width: int | None, object_width: int | None, object_sees: str) -> dict[str, tuple[str, int]]:
    """The feature stream that each branch sees, and its width; a branch without a width is off."""
    streams = {}
    if action_width is not None:
        streams["action"] = (ACTION_KEY, action_width)
    if object_width is not None:
        streams["object"] = (OBJECT_KEY if object_sees == "clip" else ACTION_KEY, object_width)
    return streams


@dataclass(frozen=True)
class VideoItem:
    """A video, and while training its captions with their token features."""

    video_id: str
    streams: dict[str, Tensor]
    captions: tuple[Caption, ...] = ()
    queries: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class QueryItem:
    """A caption with its token features."""

    caption: Caption
    query: Tensor


class TrainingVideos(Dataset["VideoItem | InputError"]):
    """Videos with all their captions.

    A mistake in a file is returned instead of raised: what a worker raises reaches the user as a traceback.
    """

    def __init__(self, reader: FeatureReader, captions: Sequence[Caption]) -> None:
        self.reader = reader
        self.videos = [(video_id, tuple(own)) for video_id, own in group_by_video(captions).items()]

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> VideoItem | InputError:
        video_id, captions = self.videos[index]
        try:
            queries = tuple(self.reader.read_query(caption.id) for caption in captions)
            return VideoItem(video_id, self.reader.read_video(video_id), captions, queries)
        except InputError as error:
            return error


class CorpusVideos(Dataset["VideoItem | InputError"]):
    """Videos to be searched."""

    def __init__(self, reader: FeatureReader, video_ids: Sequence[str]) -> None:
        self.reader = reader
        self.video_ids = list(video_ids)

    def __len__(self) -> int:
        return len(self.video_ids)

    def __getitem__(self, index: int) -> VideoItem | InputError:
        try:
            return VideoItem(self.video_ids[index], self.reader.read_video(self.video_ids[index]))
        except InputError as error:
            return error


class Queries(Dataset["QueryItem | InputError"]):
    """Captions to search with."""

    def __init__(self, reader: FeatureReader, captions: Sequence[Caption]) -> None:
        self.reader = reader
        self.captions = list(captions)

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, index: int) -> QueryItem | InputError:
        try:
            return QueryItem(self.captions[index], self.reader.read_query(self.captions[index].id))
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
