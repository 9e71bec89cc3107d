"""Ranks and recall where a caption has several right videos.

A ranking is the worst that the scores allow: among equal scores the wrong videos come first, so that a tie counts
against the caption. Of P right videos, the one with the j-th highest score has rank j + (wrong videos that score at
least as much). With P = 1 that is the rank of `method.evaluation.metrics`.

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
    place_N = np.arange(len(ranks_N)) - np.repeat(first_C, counts_C) + 1  # j, the right videos at or above each
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
        "map": mean_of_captions(place_N / ranks_N),
    }


def worst_ranks(scores_N: npt.NDArray[np.float32], at_least_N: Indices, first_C: Indices) -> Ranks:
    """Ranks of right videos, rising within each caption, (N,); see above.

    Args:
        scores_N: score of each right video.
        at_least_N: how many videos, right ones and itself included, score at least as much for the caption.
        first_C: index of each caption's first right video.
    """
    caption_N = np.repeat(np.arange(len(first_C)), np.diff(np.append(first_C, len(scores_N))))
    order_N = np.lexsort((-scores_N, caption_N))
    scores_N, at_least_N = scores_N[order_N], at_least_N[order_N]
    place_N = np.arange(len(scores_N)) - first_C[caption_N] + 1
    # Right videos that score at least as much: up to the last one of equals.
    last_N = np.append((scores_N[1:] != scores_N[:-1]) | (caption_N[1:] != caption_N[:-1]), True)
    right_at_least_N = place_N[last_N][np.cumsum(last_N) - last_N]
    return at_least_N - right_at_least_N + place_N


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
        self._scores = {name: torch.empty(len(pairs), device=device) for name in names}
        self._at_least = {name: torch.empty_like(self._videos_N) for name in self._scores}

    def add(self, block: slice, scores: Mapping[str, Tensor]) -> None:
        """Take the scores (q, V) of the captions of `block`, which are finite."""
        pairs = self._pairs_of(block)
        for start in range(pairs.start, pairs.stop, block.stop - block.start):
            part = slice(start, min(start + block.stop - block.start, pairs.stop))
            for name, scores_qV in scores.items():
                scores_Vn = scores_qV.t().index_select(1, self._rows_N[part] - block.start)  # contiguous, as scored
                own_n = scores_Vn.gather(0, self._videos_N[part][None])[0]
                self._scores[name][part] = own_n
                self._at_least[name][part] = (scores_Vn >= own_n).sum(0)

    def ranks(self, own: slice, processes: Processes) -> RightRanks:
        """The ranks, once each process has added the blocks of its captions, `own`. Every process gets all."""
        pairs = self._pairs_of(own)
        shards = processes.gather({name: [values[name][pairs].to("cpu", copy=True) for values in
            (self._scores, self._at_least)] for name in self._scores})  # fmt: skip
        first_C = np.unique(self._caption_N, return_index=True)[1]
        joined = {name: [torch.cat(parts).numpy() for parts in zip(*(shard[name] for shard in shards), strict=True)]
            for name in self._scores}  # fmt: skip
        ranks = {name: worst_ranks(scores_N, counts_N, first_C) for name, (scores_N, counts_N) in joined.items()}
        return RightRanks(self.labels, first_C, ranks)

    def _pairs_of(self, captions: slice) -> slice:
        first, end = np.searchsorted(self._caption_N, [captions.start, captions.stop]).tolist()
        return slice(first, end)
