"""Checkpoint files: written atomically, and read without executing anything that a file contains."""

from __future__ import annotations

import importlib
import io
import os
import pickle
import struct
import warnings
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from method.model.weight_names import current_names
from method.runtime.errors import InputError, shown, summarize
from method.runtime.file_kinds import describe
from method.runtime.files import require_file, write_bytes

# Types in published checkpoints besides tensors. All of them are plain data, constructed without side effects; option
# holders are read as dictionaries.
_multiarray: Any = importlib.import_module("numpy._core.multiarray")
_SAFE_TYPES: list[Any] = [
    (OrderedDict, "easydict.EasyDict"),
    (OrderedDict, "argparse.Namespace"),
    np.dtype,
    np.ndarray,
    *(type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32, np.bool_)),
    *(
        (getattr(_multiarray, name), f"{module}.{name}")
        for module in ("numpy.core.multiarray", "numpy._core.multiarray")
        for name in ("scalar", "_reconstruct")
    ),
]
_NOT_READABLE, _EXPECTED = "not a readable checkpoint", "expected a file written by torch.save"
_DOS_DIRECTORY = 0x10
# What the readers below raise for a damaged file.
_UNREADABLE = (
    *(RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError, IndexError, AssertionError, OSError),
    *(OverflowError, MemoryError, zipfile.BadZipFile, zlib.error, struct.error),
)


def write_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint atomically."""
    # Through memory, because torch.save hides the reason when a disk is full.
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    write_bytes(path, lambda file: file.write(buffer.getbuffer()))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU without executing code from the file.

    InputError for a file that is missing, damaged, not a checkpoint, or holds anything but tensors and plain data.
    """
    require_file(path)
    with path.open("rb") as file:
        return read_open_checkpoint(file, path)


def read_open_checkpoint(file: BinaryIO, path: Path) -> dict[str, Any]:
    """As `read_checkpoint`, from an open file; `path` is for messages."""
    try:
        _check_archive(file)
        file.seek(0)
        with torch.serialization.safe_globals(_SAFE_TYPES), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about foreign pickles, which are refused below
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if kind := describe(path):
            raise InputError(f"{path}: {_NOT_READABLE}: {_EXPECTED}, found {kind}") from error
        name = str(error).split("GLOBAL ")[1].split(" ")[0] if "GLOBAL " in str(error) else ""
        found = name or "code or objects other than tensors and plain data, or damaged data"
        raise InputError(f"{path}: checkpoint refused: it contains {found}; nothing was executed") from error
    except _UNREADABLE as error:
        kind = describe(path)
        reason = f": {_EXPECTED}, found {kind}" if kind else f" ({_first_line(error)})"
        raise InputError(f"{path}: {_NOT_READABLE}{reason}") from error
    weights = content.get("model") if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in weights.items()
    ):
        found = f", found {summarize([shown(key) for key in content])}" if isinstance(content, dict) else ""
        raise InputError(f"{path}: expected a checkpoint with the weights under 'model'{found}")
    if odd := [name for name, value in weights.items() if not is_plain(value)]:
        raise InputError(f"{path}: weights that are not dense tensors with full storage: {summarize(odd)}")
    content["model"] = current_names(weights, str(path))
    epoch = content.setdefault("epoch", 0)
    if not isinstance(epoch, int | np.integer) or isinstance(epoch, bool) or epoch < 0:
        raise InputError(f"{path}: expected a whole number, at least 0, under 'epoch', found {shown(epoch)}")
    content["epoch"] = int(epoch)
    return content


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is a dense CPU tensor whose storage holds all of its elements."""
    if tensor.layout != torch.strided or tensor.is_nested or tensor.is_quantized or tensor.device.type != "cpu":
        return False
    # With stride 0, a file of a few bytes can declare a tensor of any size.
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _check_archive(file: BinaryIO) -> None:
    """Compare every record of a zip archive with its checksum; torch.load does not notice flipped bits."""
    if file.read(2) != b"PK":  # the older format, which has no checksums
        return
    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()
        if sum(record.file_size for record in records) > file.seek(0, os.SEEK_END):
            raise zipfile.BadZipFile("its records are larger than the file")
        if any(record.external_attr & _DOS_DIRECTORY for record in records):  # torch would read them as empty
            raise zipfile.BadZipFile("its central directory is damaged")
        damaged = archive.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"record {damaged} does not match its checksum")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].split(". ")[0]
