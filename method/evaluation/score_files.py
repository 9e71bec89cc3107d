"""Score matrices on disk, since those of a large split do not fit into memory.

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

from method.runtime.disk import flush_to_disk, ignore_unsupported

Scores = npt.NDArray[np.float32]


class ScoreFiles:
    """(Q, V) scores by name, written in blocks of queries, in any order, to unnamed temporary files.

    The operating system removes the files when the process exits, even if it is killed.

    Args:
        folder: determines the disk.
        queries: Q.
        videos: V.
    """

    def __init__(self, folder: Path, queries: int, videos: int) -> None:
        self.folder = folder
        self.shape = (queries, videos)
        self._files: dict[str, BinaryIO] = {}

    def write(self, start: int, scores: Mapping[str, Tensor]) -> None:
        """Write the scores (q, V) of the queries from `start` on. OSError naming the folder when the disk is full."""
        with self._naming_the_folder():
            for name, scores_qV in scores.items():
                if name not in self._files:
                    self._files[name] = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115  (lives as long as this)
                self._files[name].seek(start * self.shape[1] * np.dtype(np.float32).itemsize)
                self._files[name].write(scores_qV.contiguous().cpu().numpy().data)

    def read(self) -> dict[str, Scores]:
        """Map all scores into memory; nothing can be written after this."""
        scores: dict[str, Scores] = {}
        with self._naming_the_folder():
            for name, file in self._files.items():
                file.flush()
                flush_to_disk(file.fileno())  # report a failing disk now instead of reading zeros later
                scores[name] = _map(file, self.shape)
                file.close()
        return scores

    @contextlib.contextmanager
    def _naming_the_folder(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.folder)) from error


def _map(file: BinaryIO, shape: tuple[int, int]) -> Scores:
    """Map a file of scores, read-only; read it if the file system cannot map files."""
    with ignore_unsupported():
        return np.memmap(file, np.float32, "r", shape=shape)
    file.seek(0)
    return np.fromfile(file, np.float32, shape[0] * shape[1]).reshape(shape)
