"""Scores that are kept: on the disk and not in memory, where those of a large split would not fit.

Letters: Q queries, q queries of a block, V videos.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from torch import Tensor

from method.data.mapped import map_array
from method.runtime.files import flush_to_disk

Scores = npt.NDArray[np.float32]


class KeptScores:
    """(Q, V) scores by name, written a block of queries at a time, in any order, to files without a name.

    Whatever ends the process, the system takes such files away.

    Args:
        folder: whose disk shall hold them.
        queries: Q.
        videos: V.
    """

    def __init__(self, folder: Path, queries: int, videos: int) -> None:
        self.folder = folder
        self.shape = (queries, videos)
        self._files: dict[str, BinaryIO] = {}

    def write(self, first: int, scores: Mapping[str, Tensor]) -> None:
        """Write the scores (q, V) of the queries from `first` on. OSError naming the folder when the disk is full."""
        with self._named():
            for name, scores_qV in scores.items():
                if name not in self._files:
                    self._files[name] = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115  (lives as long as this)
                self._files[name].seek(first * self.shape[1] * np.dtype(np.float32).itemsize)
                self._files[name].write(scores_qV.contiguous().cpu().numpy().data)

    def read(self) -> dict[str, Scores]:
        """All scores, to be read from the disk when they are used; no more can be written."""
        scores: dict[str, Scores] = {}
        with self._named():
            for name, file in self._files.items():
                file.flush()
                flush_to_disk(file.fileno())  # a disk that fails shall say so now and not make zeros of scores
                scores[name] = map_array(file, np.float32, self.shape)
                file.close()
        return scores

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.folder)) from error
