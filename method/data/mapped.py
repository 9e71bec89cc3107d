"""Arrays in files, mapped where the file system can."""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from method.runtime.files import tolerated


def map_array(file: Path | BinaryIO, dtype: npt.DTypeLike, shape: tuple[int, ...], offset: int = 0) -> npt.NDArray[Any]:
    """An array that a file holds from byte `offset` on, mapped read-only; read where files cannot be mapped.

    ValueError for a file that is too short.
    """
    with tolerated():
        return np.memmap(file, dtype, "r", offset, shape)
    if not isinstance(file, Path):
        file.seek(0)
    stored = np.fromfile(file, dtype, int(np.prod(shape)), offset=offset)
    return stored.reshape(shape)
