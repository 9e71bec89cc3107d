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

from method.data.ragged import Layout, Ragged
from method.runtime import hardware


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

    def __len__(self) -> int:
        return len(self.lengths)

    def video(self, index: int) -> Tensor:
        """Embeddings (n, D) of one video of the corpus, in float32."""
        return self.values[self._starts[index] : self._starts[index] + self.lengths[index]].float()

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


@dataclass(frozen=True)
class LengthBucket:
    """Videos of equal length: their indices in the corpus (v,) and their frame embeddings (v, L, D)."""

    index_v: Tensor
    frames_vLD: Tensor

    def split(self, size: int) -> list[LengthBucket]:
        """Buckets of at most `size` videos."""
        parts = zip(self.index_v.split(size), self.frames_vLD.split(size), strict=True)
        return [LengthBucket(index_v, frames_vLD) for index_v, frames_vLD in parts]
