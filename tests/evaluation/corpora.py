"""Made-up videos and captions as they are once encoded, and their scores by a loop."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from method.data.captions import Caption
from method.evaluation.corpus import Corpus, QuerySet
from method.evaluation.frame_keys import FrameKeys

BRANCHES = ("action", "object")


@dataclass
class Encoded:
    """Frames of each video and vectors of each caption, by branch."""

    frames: dict[str, list[torch.Tensor]]
    vectors: dict[str, torch.Tensor]

    @property
    def video_ids(self) -> list[str]:
        return [f"v{place}" for place in range(len(self.frames["action"]))]

    def corpus(self, piece: int = 7) -> Corpus:
        """The videos, joined from pieces of so many frames."""
        keys = {
            name: FrameKeys.join(torch.cat(own).split(piece), [len(f) for f in own])
            for name, own in self.frames.items()
        }
        return Corpus(self.video_ids, keys)

    def queries(self) -> QuerySet:
        """The captions; they belong to the videos in turn."""
        names = self.video_ids
        owners = [names[place % len(names)] for place in range(len(self.vectors["action"]))]
        captions = [Caption(f"{owner}#{place}", owner, "") for place, owner in enumerate(owners)]
        return QuerySet(captions, self.vectors)

    def scores(self, weight: float) -> dict[str, torch.Tensor]:
        """Every caption against every video, one after the other."""
        both = {
            name: torch.tensor([[float((own.float() @ query).max()) for own in self.frames[name]] for query in queries])
            for name, queries in self.vectors.items()
        }
        return {**both, "fused": weight * both["action"] + (1 - weight) * both["object"]}

    def best_frames(self) -> dict[str, list[list[int]]]:
        """The first frame that has the score, by a loop."""
        return {
            name: [[first_highest((own.float() @ query).tolist()) for own in self.frames[name]] for query in queries]
            for name, queries in self.vectors.items()
        }


def first_highest(values: list[float]) -> int:
    """Where the highest value stands first."""
    return values.index(max(values))


def random_encoded(videos: int, queries: int, longest: int, width: int = 4) -> Encoded:
    """Videos of 1 to `longest` frames, other lengths for each branch."""
    generator = torch.Generator().manual_seed(1)
    frames, vectors = {}, {}
    for name in BRANCHES:
        lengths = torch.randint(1, longest + 1, (videos,), generator=generator).tolist()
        frames[name] = [F.normalize(torch.randn(length, width, generator=generator), dim=-1) for length in lengths]
        vectors[name] = F.normalize(torch.randn(queries, width, generator=generator), dim=-1)
    return Encoded(frames, vectors)
