"""The shard of a batch that a rank encodes, and the collectives of a loss that spans the whole batch.

Each rank encodes its own videos and their captions. The query vectors, which are small, are all-gathered. Each rank
scores all queries against its own videos, and these columns of the score matrix are all-gathered. From the whole matrix
every rank computes the same loss. The gradient of a query vector is spread over all ranks, that of a score lies on the
rank that computed it: weight gradients, summed over the ranks, are those of the whole batch.

Letters: B videos and Q captions of the whole batch, D width.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from method.data.batch import VideoBatch
from method.data.ragged import Ragged
from method.model.scoring import Similarity
from method.runtime.processes import Processes


class ShardedBatch:
    """A batch in a single process: the shard is the whole batch, and nothing has to be gathered.

    batch: the shard, which this rank encodes. edited: branches with edits of any caption of the whole batch.
    """

    def __init__(self, batch: VideoBatch, edited: Collection[str]) -> None:
        self.batch = batch
        self.edited = frozenset(edited)

    def gather_queries(self, local: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The vectors of all captions, (Q, D) for each branch, from those of the shard."""
        return local

    def gather_scores(self, local: Mapping[str, Similarity]) -> Mapping[str, Similarity]:
        """The scores of all captions and all videos for each branch, from those of all captions and the shard's videos.

        The best frames are only those of the shard's captions in its videos.
        """
        return local

    def gather_labels(self, local_Q: Tensor) -> Tensor:
        """The index of each caption's video in the batch, from the shard's indices of its own videos."""
        return local_Q

    @property
    def first_video(self) -> int:
        """The index in the batch of the shard's first video."""
        return 0

    @property
    def own_captions(self) -> slice:
        """Those of the captions of the batch that are the shard's."""
        return slice(0, len(self.batch.labels_Q))

    def gather_captions(self, local: Tensor) -> Tensor:
        """What belongs to each caption, (Q, ...), from the rows of the shard's captions, which get its gradient."""
        return local

    def gather_videos(self, local: Tensor) -> Tensor:
        """What belongs to each video, (B, ...), from the rows of the shard's videos. Not differentiable."""
        return local

    def sum(self, local: Tensor) -> Tensor:
        """A sum over the batch, from the sum over the shard."""
        return local


class _GatheredBatch(ShardedBatch):
    """The shard of one of several ranks, all of which construct theirs at the same time.

    A batch with feature rows but no video ids is the dummy of an empty shard: it is encoded and then dropped.
    """

    def __init__(self, processes: Processes, batch: VideoBatch, edited: Collection[str]) -> None:
        branches = sorted(batch.streams)
        local = [len(batch.video_ids), len(batch.labels_Q)]
        local += [batch.streams[branch].layout.longest for branch in branches]
        local += [branch in edited for branch in branches]
        videos, captions, *rest = zip(*processes.exchange(local), strict=True)
        longest = {branch: max(lengths) for branch, lengths in zip(branches, rest, strict=False)}
        edited_anywhere = [name for name, flags in zip(branches, rest[len(branches) :], strict=True) if any(flags)]
        # With fusion extent 'padded', what is read past a video's end depends on the longest video of the whole batch.
        streams = {branch: _with_longest(batch.streams[branch], longest[branch]) for branch in batch.streams}
        super().__init__(replace(batch, streams=streams), edited_anywhere)
        self._processes = processes
        self._videos, self._captions = videos, captions

    def gather_queries(self, local: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        joined = torch.cat([vectors_QD[: len(self.batch.labels_Q)].float() for vectors_QD in local.values()], 1)
        gathered = self._processes.rows(joined, self._captions, partial=True).chunk(len(local), 1)
        return {name: part_QD.to(local[name].dtype) for name, part_QD in zip(local, gathered, strict=True)}

    def gather_scores(self, local: Mapping[str, Similarity]) -> Mapping[str, Similarity]:
        parts = [part.t() for scores in local.values() for part in (scores.cosine_QB, scores.raw_QB)]
        joined = torch.cat(parts, 1)[: len(self.batch.video_ids)]
        matrices = self._processes.rows(joined, self._videos, partial=False).t().chunk(2 * len(local))
        return {
            name: Similarity(cosine_QB, raw_QB, local[name].best_frame_QB[self.own_captions])
            for name, cosine_QB, raw_QB in zip(local, matrices[::2], matrices[1::2], strict=True)
        }

    def gather_labels(self, local_Q: Tensor) -> Tensor:
        return self._processes.rows(local_Q + self.first_video, self._captions, partial=False)

    @property
    def first_video(self) -> int:
        return sum(self._videos[: self._processes.rank])

    @property
    def own_captions(self) -> slice:
        first = sum(self._captions[: self._processes.rank])
        return slice(first, first + len(self.batch.labels_Q))

    def gather_captions(self, local: Tensor) -> Tensor:
        return self._processes.rows(local[: len(self.batch.labels_Q)], self._captions, partial=False)

    def gather_videos(self, local: Tensor) -> Tensor:
        return self._processes.rows(local[: len(self.batch.video_ids)], self._videos, partial=False)

    def sum(self, local: Tensor) -> Tensor:
        return self._processes.sum(local)


def shard_batch(processes: Processes, batch: VideoBatch, edited: Collection[str]) -> ShardedBatch:
    """This rank's shard of a batch, `edited` being the branches with edits of its captions."""
    return ShardedBatch(batch, edited) if processes.count == 1 else _GatheredBatch(processes, batch, edited)


def _with_longest(rows: Ragged, longest: int) -> Ragged:
    return Ragged(rows.values, replace(rows.layout, longest=longest))
