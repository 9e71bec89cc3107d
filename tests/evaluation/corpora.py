"""Random encoded videos and captions, and their scores by a loop."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from method.data.captions import Caption
from method.evaluation.corpus import Corpus, QuerySet
from method.evaluation.frame_embeddings import FrameEmbeddings
from method.evaluation.scorer import ScoringSettings
from tests.helpers.small_models import branch_weights

BRANCHES = ("action", "object")


def settings_of(
    weight: float, memory_mb: int = 64, precision: str = "off", branches: Iterable[str] = BRANCHES
) -> ScoringSettings:
    """Settings that give the first branch this weight."""
    return ScoringSettings(branch_weights(branches, weight), memory_mb, precision)


@dataclass
class Encoded:
    """Frames of each video and vectors of each caption, by branch."""

    frames: dict[str, list[torch.Tensor]]
    vectors: dict[str, torch.Tensor]

    @property
    def video_ids(self) -> list[str]:
        return [f"v{index}" for index in range(len(next(iter(self.frames.values()))))]

    def corpus(self, chunk: int = 7) -> Corpus:
        """The videos, joined from chunks of `chunk` frames."""
        frames = {
            name: FrameEmbeddings.join(torch.cat(own).split(chunk), [len(f) for f in own])
            for name, own in self.frames.items()
        }
        return Corpus(self.video_ids, frames)

    def queries(self) -> QuerySet:
        """The captions, assigned to the videos in turn."""
        names = self.video_ids
        owners = [names[index % len(names)] for index in range(len(next(iter(self.vectors.values()))))]
        captions = [Caption(f"{owner}#{index}", owner, "") for index, owner in enumerate(owners)]
        return QuerySet(captions, self.vectors)

    def scores(self, weight: float) -> dict[str, torch.Tensor]:
        """Scores by a loop over captions and videos; `weight` is that of the first branch."""
        scores = {
            name: torch.tensor([[float((own.float() @ query).max()) for own in self.frames[name]] for query in queries])
            for name, queries in self.vectors.items()
        }
        weights = branch_weights(scores, weight)
        return {**scores, "fused": torch.stack([weights[name] * own for name, own in scores.items()]).sum(0)}

    def best_frames(self) -> dict[str, list[list[int]]]:
        """The best frame, the first of equals, by a loop."""
        return {
            name: [[first_highest((own.float() @ query).tolist()) for own in self.frames[name]] for query in queries]
            for name, queries in self.vectors.items()
        }


def first_highest(values: list[float]) -> int:
    """Index of the first maximum."""
    return values.index(max(values))


def random_encoded(
    videos: int, queries: int, longest: int, width: int = 4, branches: Iterable[str] = BRANCHES
) -> Encoded:
    """Videos of 1 to `longest` frames, with different lengths per branch."""
    generator = torch.Generator().manual_seed(1)
    frames, vectors = {}, {}
    for name in branches:
        lengths = torch.randint(1, longest + 1, (videos,), generator=generator).tolist()
        frames[name] = [F.normalize(torch.randn(length, width, generator=generator), dim=-1) for length in lengths]
        vectors[name] = F.normalize(torch.randn(queries, width, generator=generator), dim=-1)
    return Encoded(frames, vectors)
