"""Frame embeddings of a corpus, with videos of equal length side by side: scoring needs no padding and no mask.

Letters: V videos, v videos of one length, N frames of all videos, n frames of one video, L frames of each, D width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, groupby

import torch
from torch import Tensor

from method import ops
from method.data.ragged import Layout, Ragged
from method.runtime import hardware

_ROWS_PER_COPY = 1 << 16


@dataclass(frozen=True)
class FrameEmbeddings:
    """Normalised frame embeddings of one branch.

    values: (N, D), in the stored precision, sorted by video length; videos of equal length keep the corpus order.
    lengths: number of frames of each video, in corpus order.
    """

    values: Tensor
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, videos: Ragged) -> FrameEmbeddings:
        """Sort embeddings that are in corpus order."""
        return cls.join([videos.values], videos.layout.lengths)

    @classmethod
    def join(cls, chunks: Iterable[Tensor], lengths: Sequence[int]) -> FrameEmbeddings:
        """Sort embeddings that arrive in corpus order, in chunks split anywhere.

        Each chunk is released once its rows are copied. On a CPU, where memory is taken when it is first written, the
        embeddings are therefore never held twice.

        Args:
            chunks: at least one, (n, D).
            lengths: number of frames of each video; their sum is the number of rows.
        """
        joined: FrameEmbeddings | None = None
        done = 0
        for chunk_nD in chunks:
            if joined is None:
                joined = cls(chunk_nD.new_empty(sum(lengths), chunk_nD.shape[1]), tuple(lengths))
                layout = Layout.of(lengths)
                row_N = torch.tensor(joined._starts, dtype=torch.long)[layout.owner_N] + layout.position_N
            row_n = hardware.to_device_async(row_N[done : done + len(chunk_nD)], chunk_nD.device)
            done += len(chunk_nD)
            if done <= len(row_N):
                joined.values.index_copy_(0, row_n, chunk_nD)
            del chunk_nD
        if joined is None or done != sum(lengths):
            raise ValueError(f"{done} frame embeddings, expected {sum(lengths)}")
        return joined

    @classmethod
    def gather(
        cls, sources: Sequence[FrameEmbeddings], places: Sequence[tuple[int, int]], device: torch.device | str
    ) -> FrameEmbeddings:
        """Videos of several collections in a new order, copied to a device.

        Args:
            sources: at least one, of the same width and precision.
            places: of each video, the number of its source and its index there.
            device: of the result.
        """
        like = sources[0].values
        lengths = tuple(sources[number].lengths[index] for number, index in places)
        gathered = cls(like.new_empty(sum(lengths), like.shape[1], device=device), lengths)
        for number, source in enumerate(sources):
            own = [video for video, place in enumerate(places) if place[0] == number]
            layout = Layout.of([lengths[video] for video in own])
            starts = [[source._starts[places[video][1]] for video in own], [gathered._starts[video] for video in own]]
            rows_2N = torch.tensor(starts, dtype=torch.long)[:, layout.owner_N] + layout.position_N
            for from_n, to_n in zip(*(rows_N.split(_ROWS_PER_COPY) for rows_N in rows_2N), strict=True):
                gathered.values.index_copy_(0, to_n.to(device), source.values.index_select(0, from_n).to(device))
        return gathered

    @property
    def dtype(self) -> torch.dtype:
        """The stored precision."""
        return self.values.dtype

    def __len__(self) -> int:
        return len(self.lengths)

    def video(self, index: int) -> Tensor:
        """Embeddings (n, D) of one video of the corpus, in float32."""
        return self.values[self._starts[index] : self._starts[index] + self.lengths[index]].float()

    def select(self, indices: Sequence[int]) -> SelectedEmbeddings:
        """Some of the videos, in this order, read where they are."""
        return SelectedEmbeddings([self], [(0, index) for index in indices])

    def to(self, device: torch.device | str) -> FrameEmbeddings:
        """The same embeddings on another device."""
        return FrameEmbeddings(self.values.to(device), self.lengths)

    @cached_property
    def buckets(self) -> list[LengthBucket]:
        """All videos, bucketed by length; views, no embedding is copied."""
        buckets, start = [], 0
        for length, members in groupby(self._order, key=self.lengths.__getitem__):
            indices = list(members)
            rows = self.values[start : start + length * len(indices)]
            start += len(rows)
            index_v = hardware.to_device_async(torch.tensor(indices), rows.device)
            buckets.append(LengthBucket(index_v, rows.unflatten(0, (-1, length))))
        return buckets

    def highest_dots(self, vectors_qD: Tensor) -> Tensor:
        """The highest dot product of each query with the frames of each video, (V, q), without large products.

        Rounded in another way than the scores of evaluation.
        """
        highest_Vq = vectors_qD.new_empty(len(self), len(vectors_qD))
        for part in self._parts:
            found_vq = ops.highest_dots(part.values_ND, part.start_v, part.length_v, vectors_qD)
            highest_Vq.index_copy_(0, part.index_v, found_vq)
        return highest_Vq

    @cached_property
    def _parts(self) -> list[_Part]:
        """All videos, as they lie in memory."""
        return [_Part.of(self, range(len(self)), range(len(self)))]

    @cached_property
    def _order(self) -> list[int]:
        return sorted(range(len(self.lengths)), key=self.lengths.__getitem__)

    @cached_property
    def _starts(self) -> list[int]:
        """First row of each video."""
        starts = [0] * len(self.lengths)
        for index, row in zip(self._order, accumulate((self.lengths[i] for i in self._order), initial=0), strict=False):
            starts[index] = row
        return starts


class SelectedEmbeddings(FrameEmbeddings):
    """Videos of several collections, each read where it is; `values` is a copy of all of them.

    Where only some videos of a collection are selected, they are copied when buckets are first needed.

    Args:
        sources: at least one, of the same width and precision.
        places: of each video, the number of its source and its index there.
    """

    def __init__(self, sources: Sequence[FrameEmbeddings], places: Sequence[tuple[int, int]]) -> None:
        lengths = tuple(sources[number].lengths[index] for number, index in places)
        for name, value in {"sources": tuple(sources), "places": tuple(places), "lengths": lengths}.items():
            object.__setattr__(self, name, value)  # the base class is frozen

    sources: tuple[FrameEmbeddings, ...]
    places: tuple[tuple[int, int], ...]

    @cached_property
    def values(self) -> Tensor:  # noqa: D102
        return self.to("cpu", copy=True).values

    @property
    def dtype(self) -> torch.dtype:  # noqa: D102
        return self.sources[0].dtype

    def video(self, index: int) -> Tensor:  # noqa: D102
        number, place = self.places[index]
        return self.sources[number].video(place)

    def select(self, indices: Sequence[int]) -> SelectedEmbeddings:  # noqa: D102
        return SelectedEmbeddings(self.sources, [self.places[index] for index in indices])

    def to(self, device: torch.device | str, copy: bool = False) -> FrameEmbeddings:
        """The same embeddings on another device, copied; on a CPU they stay where they are unless a copy is wanted."""
        if torch.device(device).type == "cpu" and not copy:
            return self
        return FrameEmbeddings.gather(self.sources, self.places, device)

    @cached_property
    def buckets(self) -> list[LengthBucket]:  # noqa: D102
        found = []
        for source, own in self._by_source:
            places = [self.places[video][1] for video in own]
            if len(own) < len(source):
                source = FrameEmbeddings.gather([source], [(0, place) for place in places], "cpu")
                places = list(range(len(own)))
            video_V = torch.empty(len(source), dtype=torch.long)
            video_V[places] = torch.tensor(own)
            found += [LengthBucket(video_V[bucket.index_v], bucket.frames_vLD) for bucket in source.buckets]
        return found

    @cached_property
    def _parts(self) -> list[_Part]:
        return [_Part.of(source, [self.places[video][1] for video in own], own) for source, own in self._by_source]

    @property
    def _by_source(self) -> list[tuple[FrameEmbeddings, list[int]]]:
        """The collections of which videos are selected, with these videos."""
        videos: list[list[int]] = [[] for _ in self.sources]
        for video, (number, _) in enumerate(self.places):
            videos[number].append(video)
        return [(source, own) for source, own in zip(self.sources, videos, strict=True) if own]


@dataclass(frozen=True)
class _Part:
    """Videos in one tensor of frames: first frame, number of frames and index in the corpus of each, (v,)."""

    values_ND: Tensor
    start_v: Tensor
    length_v: Tensor
    index_v: Tensor

    @classmethod
    def of(cls, source: FrameEmbeddings, members: Sequence[int], indices: Sequence[int]) -> _Part:
        """These members of a collection, which are the videos of these indices; in the order of their frames."""
        numbers = [
            (source._starts[own], source.lengths[own], index) for own, index in zip(members, indices, strict=True)
        ]
        sorted_3v = torch.tensor(sorted(numbers), dtype=torch.long).view(-1, 3).t().contiguous()
        return cls(source.values, *hardware.to_device_async(sorted_3v, source.values.device))


@dataclass(frozen=True)
class LengthBucket:
    """Videos of equal length: their indices in the corpus (v,) and their frame embeddings (v, L, D)."""

    index_v: Tensor
    frames_vLD: Tensor

    def split(self, size: int) -> list[LengthBucket]:
        """Buckets of at most `size` videos."""
        parts = zip(self.index_v.split(size), self.frames_vLD.split(size), strict=True)
        return [LengthBucket(index_v, frames_vLD) for index_v, frames_vLD in parts]
