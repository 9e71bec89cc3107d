"""The features of videos as an index knows them: the state of their files, and a digest of each video's rows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from method.data.batch import Loader, VideoBatch
from method.data.dataset import TOKENS, FeatureReader
from method.data.linked_files import state_of
from method.data.ragged import Layout, Ragged
from method.runtime.errors import InputError
from method.runtime.progress import progress_bar
from method.serving.index.manifest import FeatureState

Longest = Mapping[str, int]

_VIDEOS_PER_READ = 16


def features_state(reader: FeatureReader, video_ids: Iterable[str]) -> FeatureState:
    """Path of the feature file, and size and times of it and of the files that the arrays of these videos lie in.

    As they were when the reader opened them: of a file that was replaced since, it reads the earlier one.
    InputError for a missing array.
    """
    file = reader.videos
    names = [f"{video_id}/{key}" for video_id in video_ids for key, _ in reader.streams.values()]
    parts = [part for own in file.linked(names).values() for part in own]
    linked = {part["path"]: {name: part[name] for name in file.state()} for part in parts}
    own = str(file.path.resolve())
    return {"path": own, "files": dict(sorted({**linked, own: file.state()}.items()))}


def is_current(state: FeatureState, reader: FeatureReader) -> bool:
    """Whether a state is that of the feature file of the reader, and nothing has changed."""
    try:
        return state["path"] == str(reader.videos.path.resolve()) and all(
            state_of(path) == known for path, known in state["files"].items()
        )
    except OSError:
        return False


@dataclass(frozen=True)
class ReadVideos:
    """Videos with the SHA-256 of each one's features, 32 digits of it; an empty one where they cannot be read."""

    batch: VideoBatch
    digests: tuple[str, ...]


class _Videos(Dataset[ReadVideos]):
    """Batches of videos, with model inputs or digests alone."""

    def __init__(self, reader: FeatureReader, video_ids: Sequence[str], with_streams: bool) -> None:
        self.reader, self.video_ids, self.with_streams = reader, list(video_ids), with_streams

    def __len__(self) -> int:
        return len(self.video_ids)

    def __getitems__(self, indices: Sequence[int]) -> ReadVideos | InputError:
        """These videos; or, where model inputs are wanted, the error of one that cannot be read."""
        video_ids = tuple(self.video_ids[index] for index in indices)
        digests: list[str] = []
        inputs: dict[str, list[Tensor]] = {key: [] for key in dict(self.reader.streams.values())}
        for video_id in video_ids:
            try:
                digests.append(self._read(video_id, inputs))
            except InputError as error:
                if self.with_streams:
                    return error
                digests.append("")
        streams = {}
        if self.with_streams:
            gathered = {key: Ragged.of(own) for key, own in inputs.items()}
            streams = {branch: gathered[key] for branch, (key, _) in self.reader.streams.items()}
        return ReadVideos(VideoBatch(video_ids, streams, (), None, torch.empty(0, dtype=torch.long)), tuple(digests))

    def _read(self, video_id: str, inputs: dict[str, list[Tensor]]) -> str:
        """Append the model inputs of a video, if wanted; returns the digest of what is stored of it."""
        digest = hashlib.sha256()
        for key, source in sorted(self.reader.hdf5_sources.items()):
            if key == TOKENS:
                continue
            rows = source.file.read(source.names.format(video_id), source.width)
            digest.update(f"{key} {rows.shape} ".encode())
            digest.update(rows.data)
            if self.with_streams:
                inputs[key].append(source.preprocess(rows, source.max_rows))
        return digest.hexdigest()[:32]


def read_digests(reader: FeatureReader, video_ids: Sequence[str], workers: int) -> list[str]:
    """The digest of each video; empty for one that cannot be read."""
    loader = Loader(_Videos(reader, video_ids, with_streams=False), _VIDEOS_PER_READ, workers, pinned=False)
    return [digest for read in progress_bar(loader, "features", "batch") for digest in read.digests]


class SingleVideos:
    """Videos as batches of one, for encoding: the embeddings of a video then do not depend on others.

    In a batch, products of other shapes are rounded differently.

    Args:
        reader: of the features.
        video_ids: the videos.
        workers: data workers.
        longest: of videos whose fusion reads past their end, how far, by branch, as `batch_lengths`.

    digests: of the videos that have been read so far.
    """

    def __init__(
        self, reader: FeatureReader, video_ids: Sequence[str], workers: int, longest: Mapping[str, Longest]
    ) -> None:
        self.video_ids, self.digests = video_ids, list[str]()
        self._longest = longest
        self._loader = Loader(_Videos(reader, video_ids, with_streams=True), _VIDEOS_PER_READ, workers, pinned=False)

    def __len__(self) -> int:
        return len(self.video_ids)

    def __iter__(self) -> Iterator[VideoBatch]:
        for read in self._loader:
            self.digests += read.digests
            count = len(read.batch.video_ids)
            parts = {branch: rows.split([1] * count) for branch, rows in read.batch.streams.items()}
            for number, video_id in enumerate(read.batch.video_ids):
                longest = self._longest.get(video_id, {})
                streams = {branch: _alone(own[number], longest.get(branch)) for branch, own in parts.items()}
                yield VideoBatch((video_id,), streams, (), None, read.batch.labels_Q)


def _alone(rows: Ragged, longest: int | None) -> Ragged:
    # A copy, because products of rows that are aligned differently are rounded differently.
    return Ragged(rows.values.clone(), Layout.of(rows.layout.lengths, longest=longest))


def batch_lengths(reader: FeatureReader, video_ids: Sequence[str], batch_size: int) -> dict[str, Longest]:
    """For each video the frames of the longest video in its batch of evaluation, by branch.

    InputError for features that are missing or misshapen.
    """
    lengths: dict[str, list[int]] = {}
    for branch, (key, width) in reader.streams.items():
        rows = reader.videos.check([f"{video_id}/{key}" for video_id in video_ids], width).values()
        lengths[branch] = [min(own, reader.max_frames) for own in rows]
    found: dict[str, Longest] = {}
    for start in range(0, len(video_ids), batch_size):
        batch = slice(start, start + batch_size)
        longest = {branch: max(own[batch]) for branch, own in lengths.items()}
        found.update(dict.fromkeys(video_ids[batch], longest))
    return found


def known_path(state: FeatureState, path: Path) -> bool:
    """Whether a state is that of this feature file, changed or not."""
    return state["path"] == str(path.resolve())
