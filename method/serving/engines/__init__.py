"""Search engines: what finds the best videos for encoded queries.

`exact.py` scores every frame of every video. All engines show scores by `rescoring.py`, which are those of evaluation.

Letters: Q queries, D width, n frames of a video.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Found:
    """A video that was found.

    index: of the video in `video_ids`. scores: of each branch, and 'fused'. best_frames: branch -> index of the frame
    with its score, the first of equals.
    """

    index: int
    scores: dict[str, float]
    best_frames: dict[str, int]


@dataclass(frozen=True)
class Ranking:
    """The best videos for one query, best first, and the rank of its right video; None if that was not computed."""

    best: list[Found]
    right_rank: int | None = None


class SearchEngine(Protocol):
    """Finds the best videos for queries; one call at a time.

    video_ids: the videos, in corpus order.
    """

    @property
    def video_ids(self) -> Sequence[str]: ...  # noqa: D102

    def search(
        self, vectors: Mapping[str, Tensor], count: int, right: Sequence[int | None] | None = None
    ) -> list[Ranking]:
        """The best `count` videos for each query, by the fused score; equal ones are in corpus order.

        Args:
            vectors: branch -> normalised query embeddings (Q, D).
            count: how many videos to find; fewer if there are fewer.
            right: for each query the index of the video whose rank to compute as evaluation does, or None. An engine
                that does not score every video leaves `right_rank` None.

        Raises:
            InputError: for scores that are not finite.
        """

    def frames(self, index: int) -> dict[str, Tensor]:
        """Frame embeddings (n, D) of each branch of one video, in float32; safe to call from several threads."""
