"""The frame keys of a corpus, videos of one length side by side, so that a best frame needs no padding and no mask.

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
class FrameKeys:
    """Normalised frame keys of one branch.

    values: (N, D), in the precision in which they were kept: shorter videos first, equally long ones as in the corpus.
    lengths: frames of each video, in the order of the corpus.
    """

    values: Tensor
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, videos: Ragged) -> FrameKeys:
        """The keys of videos that are at hand."""
        return cls.join([videos.values], videos.layout.lengths)

    @classmethod
    def join(cls, pieces: Iterable[Tensor], lengths: Sequence[int]) -> FrameKeys:
        """The keys of videos of these lengths whose rows come one after the other, in pieces cut anywhere.

        Pieces that nobody else holds are free as soon as their rows have found their place: on a CPU, where memory is
        taken when it is first written to, the keys are never there twice.

        Args:
            pieces: at least one, (n, D).
            lengths: frames of each video, all rows together.
        """
        joined: FrameKeys | None = None
        done = 0
        for piece_nD in pieces:
            if joined is None:
                joined = cls(piece_nD.new_empty(sum(lengths), piece_nD.shape[1]), tuple(lengths))
                layout = Layout.of(lengths)
                places_N = torch.tensor(joined._starts, dtype=torch.long)[layout.owner_N] + layout.position_N
            places_n = hardware.sent(places_N[done : done + len(piece_nD)], piece_nD.device)
            done += len(piece_nD)
            if done <= len(places_N):
                joined.values.index_copy_(0, places_n, piece_nD)
            del piece_nD
        if joined is None or done != sum(lengths):
            raise ValueError(f"{done} rows of keys, expected {sum(lengths)}")
        return joined

    def __len__(self) -> int:
        return len(self.lengths)

    def video(self, place: int) -> Tensor:
        """Keys (n, D) in float32 of one video, by its place in the corpus."""
        return self.values[self._starts[place] : self._starts[place] + self.lengths[place]].float()

    def to(self, device: torch.device | str) -> FrameKeys:
        """The same keys on another device."""
        return FrameKeys(self.values.to(device), self.lengths)

    @cached_property
    def groups(self) -> list[SameLength]:
        """All videos, those of one length together; no key is copied."""
        groups, row = [], 0
        for length, members in groupby(self._order, key=self.lengths.__getitem__):
            places = list(members)
            rows = self.values[row : row + length * len(places)]
            row += len(rows)
            places_v = hardware.sent(torch.tensor(places), rows.device)
            groups.append(SameLength(places_v, rows.unflatten(0, (-1, length))))
        return groups

    @cached_property
    def _order(self) -> list[int]:
        return sorted(range(len(self.lengths)), key=self.lengths.__getitem__)

    @cached_property
    def _starts(self) -> list[int]:
        """The row at which each video begins."""
        starts = [0] * len(self.lengths)
        for place, row in zip(self._order, accumulate((self.lengths[p] for p in self._order), initial=0), strict=False):
            starts[place] = row
        return starts


@dataclass(frozen=True)
class SameLength:
    """Videos of one length: their places in the corpus (v,) and their keys (v, L, D)."""

    places_v: Tensor
    keys_vLD: Tensor

    def split(self, count: int) -> list[SameLength]:
        """At most `count` videos in each part."""
        parts = zip(self.places_v.split(count), self.keys_vLD.split(count), strict=True)
        return [SameLength(places_v, keys_vLD) for places_v, keys_vLD in parts]
