"""The best videos of each caption, kept from the scores of an evaluation.

Letters: Q captions, q captions of a block, V videos, K best videos.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from method.evaluation.metrics import FUSED
from method.runtime.processes import Processes


@dataclass(frozen=True)
class BestVideos:
    """Fused scores and indices of the K best videos of each caption, best first, (Q, K); which of equals is open."""

    scores: npt.NDArray[np.float32]
    videos: npt.NDArray[np.int64]


class BestOfBlocks:
    """Collects the best `count` videos of `queries` captions block by block of scores."""

    def __init__(self, queries: int, count: int, device: torch.device) -> None:
        self._scores_QK = torch.empty(queries, count, device=device)
        self._videos_QK = torch.empty(queries, count, dtype=torch.long, device=device)

    def add(self, block: slice, scores: Mapping[str, Tensor]) -> None:
        """Take the scores (q, V) of the captions of `block`."""
        best = scores[FUSED].topk(self._scores_QK.shape[1], dim=1)
        self._scores_QK[block], self._videos_QK[block] = best.values, best.indices

    def best(self, own: slice, processes: Processes) -> BestVideos:
        """The result, once each process has added the blocks of its captions, `own`. Every process gets all."""
        shards = processes.gather([kept[own].to("cpu", copy=True) for kept in (self._scores_QK, self._videos_QK)])
        scores_QK, videos_QK = (torch.cat(parts).numpy() for parts in zip(*shards, strict=True))
        return BestVideos(scores_QK, videos_QK)
