"""Memory-mapped arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from method.runtime.disk import ignore_unsupported


def map_array(file: Path | BinaryIO, dtype: npt.DTypeLike, shape: tuple[int, ...], offset: int = 0) -> npt.NDArray[Any]:
    """Map an array that starts at byte `offset` of a file, read-only; read it if the file system cannot map files.

    ValueError for a file that is too short.
    """
    with ignore_unsupported():
        return np.memmap(file, dtype, "r", offset, shape)
    if not isinstance(file, Path):
        file.seek(0)
    stored = np.fromfile(file, dtype, int(np.prod(shape)), offset=offset)
    return stored.reshape(shape)
