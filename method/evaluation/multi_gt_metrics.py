"""Ranks and recall where a caption has several right videos.

The rank of a right video is that of `method.evaluation.metrics`: the number of videos, right or wrong, that score at
least as much. Any tie counts against the caption, so right videos with equal scores share the last of their ranks.

Letters: Q captions, q captions of a block, V videos, C captions with labels, N right videos of all captions, n of a
block.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from method.data.captions import Caption
from method.evaluation.metrics import RECALL_AT, Ranks
from method.evaluation.multi_gt import RightVideos
from method.runtime import hardware
from method.runtime.processes import Processes

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class RightRanks:
    """Ranks of the right videos of every caption with labels.

    labels: which videos are right. first: index of the first right video of each caption, (C,), rising from 0.
    ranks: score name -> ranks (N,), rising within each caption.
    """

    labels: RightVideos
    first: Indices
    ranks: dict[str, Ranks]

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """The metrics of each score."""
        return {name: multi_gt_metrics(ranks_N, self.first) for name, ranks_N in self.ranks.items()}

    def report(self) -> dict[str, object]:
        """What metrics.json says: the number of captions with labels and without, and the metrics of each score."""
        return {"captions": len(self.first), "left_out": self.labels.left_out, **self.metrics}


def multi_gt_metrics(ranks_N: Ranks, first_C: Indices) -> dict[str, float]:
    """Recall, hit rate, first rank and mAP, as defined with the labels that CELL-POSTECH/prvr-ea released.

    r1, r5, r10, r100: |top K and right| / P in percent, averaged over captions; sumr is their sum. hit1 and so on:
    percent of the captions with a right video in the top K. medr, meanr: of the first right video's rank. map: mean
    over captions of the mean over right videos of (right videos at or above it) / its rank.

    Args:
        ranks_N: ranks from 1, rising within each caption.
        first_C: index of each caption's first one, rising from 0.

    >>> metrics = multi_gt_metrics(np.array([1, 4, 2]), np.array([0, 2]))  # ranks 1 and 4 of one caption, 2 of another
    >>> metrics["r1"], metrics["r5"], metrics["hit1"], metrics["medr"], metrics["map"]
    (25.0, 100.0, 50.0, 1.5, 0.625)
    """
    counts_C = np.diff(np.append(first_C, len(ranks_N)))
    caption_N = np.repeat(np.arange(len(first_C)), counts_C)
    # Right videos at or above each: of equals, all.
    last_N = np.append((ranks_N[1:] != ranks_N[:-1]) | (caption_N[1:] != caption_N[:-1]), True)
    above_N = np.flatnonzero(last_N)[np.cumsum(last_N) - last_N] - first_C[caption_N] + 1
    best_C = ranks_N[first_C]

    def mean_of_captions(values_N: npt.NDArray[np.float64]) -> float:
        return float(np.mean(np.add.reduceat(values_N, first_C) / counts_C))

    recalls = {f"r{k}": 100.0 * mean_of_captions((ranks_N <= k).astype(np.float64)) for k in RECALL_AT}
    return {
        **recalls,
        "sumr": sum(recalls.values()),
        **{f"hit{k}": 100.0 * int(np.sum(best_C <= k)) / len(best_C) for k in RECALL_AT},
        "medr": float(np.median(best_C)),
        "meanr": float(np.mean(best_C)),
        "map": mean_of_captions(above_N / ranks_N),
    }


class RightScores:
    """Collects, block by block of scores, what the ranks of the right videos follow from.

    A block's scores are copied once for each of a caption's right videos, at most as many rows at a time as it has.
    """

    def __init__(
        self,
        labels: RightVideos,
        captions: Sequence[Caption],
        video_ids: Sequence[str],
        names: Iterable[str],
        device: torch.device,
    ) -> None:
        self.labels = labels
        index_of = {video_id: index for index, video_id in enumerate(video_ids)}
        pairs = [
            (index, index_of[video_id])
            for index, caption in enumerate(captions)
            for video_id in labels.videos.get(caption.id, ())
        ]
        self._caption_N = np.array([index for index, _ in pairs], np.int64)
        self._rows_N = hardware.to_device_async(torch.tensor([index for index, _ in pairs]), device)
        self._videos_N = hardware.to_device_async(torch.tensor([video for _, video in pairs]), device)
        self._ranks = {name: torch.empty_like(self._videos_N) for name in names}

    def add(self, block: slice, scores: Mapping[str, Tensor]) -> None:
        """Take the scores (q, V) of the captions of `block`, which are finite."""
        pairs = self._pairs_of(block)
        for start in range(pairs.start, pairs.stop, block.stop - block.start):
            part = slice(start, min(start + block.stop - block.start, pairs.stop))
            for name, scores_qV in scores.items():
                scores_Vn = scores_qV.t().index_select(1, self._rows_N[part] - block.start)  # contiguous, as scored
                own_n = scores_Vn.gather(0, self._videos_N[part][None])[0]
                self._ranks[name][part] = (scores_Vn >= own_n).sum(0)

    def ranks(self, own: slice, processes: Processes) -> RightRanks:
        """The ranks, once each process has added the blocks of its captions, `own`. Every process gets all."""
        pairs = self._pairs_of(own)
        shards = processes.gather({name: ranks_N[pairs].to("cpu", copy=True) for name, ranks_N in self._ranks.items()})
        first_C = np.unique(self._caption_N, return_index=True)[1]
        joined = {name: torch.cat([shard[name] for shard in shards]).numpy() for name in self._ranks}
        ranks = {name: ranks_N[np.lexsort((ranks_N, self._caption_N))] for name, ranks_N in joined.items()}
        return RightRanks(self.labels, first_C, ranks)

    def _pairs_of(self, captions: slice) -> slice:
        first, end = np.searchsorted(self._caption_N, [captions.start, captions.stop]).tolist()
        return slice(first, end)
