"""What a process has of a batch, and what it needs of the others for a loss that spans all of it.

Each process encodes its own videos and their captions. The query vectors, which are small, are gathered. Each process
scores all queries against its own videos, and these columns of the whole matrix are gathered. From the whole matrix
every process computes the same loss. A query's vector has a part of its gradient on every process, a score all of it on
the process that computed it: the gradients of the weights, summed over the processes, are those of the whole batch.

Letters: B videos and Q captions of the whole batch, D width.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from itertools import accumulate

import torch
from torch import Tensor

from method.data.batch import VideoBatch
from method.data.ragged import Ragged
from method.model.scoring import Similarity
from method.runtime.processes import Processes


class Share:
    """The whole of a batch, in one process.

    batch: what this process encodes. edited: branches with edits of any caption of the whole batch.
    """

    def __init__(self, batch: VideoBatch, edited: Collection[str]) -> None:
        self.batch = batch
        self.edited = frozenset(edited)

    def queries(self, own: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The vectors of all captions of the batch, (Q, D) for each branch, from those of this process's."""
        return own

    def scores(self, own: Mapping[str, Similarity]) -> Mapping[str, Similarity]:
        """The scores of all captions and all videos of each branch, from those of all captions and own videos.

        The best frames are only those of own captions in own videos.
        """
        return own

    def labels(self, own_Q: Tensor) -> Tensor:
        """The place in the batch of each caption's video, from the places among own videos of own captions'."""
        return own_Q

    def sum(self, part: Tensor) -> Tensor:
        """A sum over the batch, from the sum over what this process has."""
        return part


class _PartialShare(Share):
    """One of several processes' share of a batch; every one of them makes its own at the same time.

    A batch with rows of features but without video ids stands in for an empty share: it is encoded, and no more.
    """

    def __init__(self, processes: Processes, batch: VideoBatch, edited: Collection[str]) -> None:
        branches = sorted(batch.streams)
        own = [len(batch.video_ids), len(batch.labels_Q)]
        own += [batch.streams[branch].layout.longest for branch in branches]
        own += [branch in edited for branch in branches]
        videos, captions, *rest = zip(*processes.exchange(own), strict=True)
        longest = {branch: max(of_all) for branch, of_all in zip(branches, rest, strict=False)}
        anywhere = [branch for branch, of_all in zip(branches, rest[len(branches) :], strict=True) if any(of_all)]
        # What fusion with extent 'padded' reads behind a video's end depends on the longest video of the whole batch.
        streams = {branch: _of_a_batch(batch.streams[branch], longest[branch]) for branch in batch.streams}
        super().__init__(replace(batch, streams=streams), anywhere)
        self._processes = processes
        self._videos, self._captions = videos, captions

    def queries(self, own: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        joined = torch.cat([vectors_QD[: len(self.batch.labels_Q)].float() for vectors_QD in own.values()], 1)
        all_queries = self._processes.rows(joined, self._captions, partial=True)
        parts = all_queries.chunk(len(own), 1)
        return {name: part_QD.to(own[name].dtype) for name, part_QD in zip(own, parts, strict=True)}

    def scores(self, own: Mapping[str, Similarity]) -> Mapping[str, Similarity]:
        parts = [part.t() for scores in own.values() for part in (scores.cosine_QB, scores.raw_QB)]
        joined = torch.cat(parts, 1)[: len(self.batch.video_ids)]
        matrices = self._processes.rows(joined, self._videos, partial=False).t().chunk(2 * len(own))
        first, rank = sum(self._captions[: self._processes.rank]), self._processes.rank
        mine = slice(first, first + self._captions[rank])
        return {
            name: Similarity(cosine_QB, raw_QB, own[name].best_frame_QB[mine])
            for name, cosine_QB, raw_QB in zip(own, matrices[::2], matrices[1::2], strict=True)
        }

    def labels(self, own_Q: Tensor) -> Tensor:
        before = list(accumulate(self._videos, initial=0))[self._processes.rank]
        return self._processes.rows(own_Q + before, self._captions, partial=False)

    def sum(self, part: Tensor) -> Tensor:
        return self._processes.sum(part)


def share_of(processes: Processes, batch: VideoBatch, edited: Collection[str]) -> Share:
    """This process's share of a batch, `edited` being the branches with edits of its captions."""
    return Share(batch, edited) if processes.count == 1 else _PartialShare(processes, batch, edited)


def _of_a_batch(rows: Ragged, longest: int) -> Ragged:
    return Ragged(rows.values, replace(rows.layout, longest=longest))
