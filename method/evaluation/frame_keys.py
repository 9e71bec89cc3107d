"""The frame keys of a corpus, videos of one length side by side, so that a best frame needs no padding and no mask.

Letters: V videos, v videos of one length, N frames of all videos, n frames of one video, L frames of each, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, groupby

import torch
from torch import Tensor

from method import hardware
from method.data.ragged import Ragged


@dataclass(frozen=True)
class FrameKeys:
    """Normalised frame keys of one branch.

    values: (N, D), in the precision in which they were kept: shorter videos first, equally long ones as in the corpus.
    lengths: frames of each video, in the order of the corpus.
    """

    values: Tensor
    lengths: tuple[int, ...]

    @classmethod
    def join(cls, batches: list[Ragged]) -> FrameKeys:
        """The keys of batches of videos, one batch after the other.

        The list is emptied on the way, so that a batch's own memory is free as soon as its rows have found their place:
        on a CPU, where memory is taken when it is first written to, the keys are never there twice.
        """
        lengths = tuple(length for batch in batches for length in batch.layout.lengths)
        first = batches[0].values
        joined = cls(first.new_empty(sum(lengths), first.shape[1]), lengths)
        starts_V = torch.tensor(joined._starts)
        done = 0
        batches.reverse()
        while batches:
            batch = batches.pop()
            layout = batch.layout
            starts_B = hardware.sent(starts_V[done : done + len(batch)], first.device)
            joined.values.index_copy_(0, starts_B[layout.owner_N] + layout.position_N, batch.values)
            done += len(batch)
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
