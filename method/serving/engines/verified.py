"""An engine over an index whose segments are compared with their checksums before the first search.

Opening a large index stays fast, and no score is computed from a damaged file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from method.serving.engines import Ranking, SearchEngine
from method.serving.index.snapshot import Snapshot


class VerifiedEngine:
    """Searches by another engine, see `SearchEngine`; InputError naming a segment that is damaged.

    Args:
        engine: that searches.
        snapshots: of the indexes that it reads.
    """

    def __init__(self, engine: SearchEngine, snapshots: Sequence[Snapshot]) -> None:
        self._engine, self._snapshots = engine, [*snapshots]  # still to be verified

    @property
    def video_ids(self) -> Sequence[str]:
        """The videos, in corpus order."""
        return self._engine.video_ids

    def frames(self, index: int) -> dict[str, Tensor]:
        """See `SearchEngine`."""
        return self._engine.frames(index)

    def search(
        self, vectors: Mapping[str, Tensor], count: int, right: Sequence[int | None] | None = None
    ) -> list[Ranking]:
        """See `SearchEngine`."""
        while self._snapshots:
            self._snapshots[-1].verify(self.video_ids)
            self._snapshots.pop()
        return self._engine.search(vectors, count, right)
