"""Checkpoints: written whole or not at all, read without running anything that a file brings along.

A checkpoint of ours is {"model", "epoch", "architecture", "options", ...}; a published one {"model", "epoch", ...} with
the published weight names.
"""

from __future__ import annotations

import importlib
import io
import logging
import os
import pickle
import struct
import warnings
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from method.config.options import make_architecture
from method.model.architecture import Architecture
from method.model.published import (
    check_scales,
    from_published,
    is_published,
    options_without_trace,
    published_architecture,
)
from method.model.retrieval import HEADS, RetrievalModel
from method.model.weight_names import current_names
from method.runtime.errors import InputError, shown, summarize
from method.runtime.file_kinds import describe
from method.runtime.files import require_file, sha256_of, write_bytes

log = logging.getLogger(__name__)

# What published checkpoints hold beside tensors. Each is data: none of it does anything when it is made, and the
# option holders among it are read as plain dictionaries.
_multiarray: Any = importlib.import_module("numpy._core.multiarray")
_HARMLESS: list[Any] = [
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
_NO_CHECKPOINT, _EXPECTED = "not a readable checkpoint", "expected a file that torch.save wrote"
_REAL_NUMBERS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_DOS_FOLDER = 0x10
# Whatever a damaged file makes the readers below stumble over.
_UNREADABLE = (
    *(RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError, IndexError, AssertionError, OSError),
    *(OverflowError, MemoryError, zipfile.BadZipFile, zlib.error, struct.error),
)


@dataclass(frozen=True)
class Loaded:
    """A model from a checkpoint, and what stood beside it.

    options: those it was trained with, for a checkpoint of ours.
    sha256: hex digest of the file that was read.
    """

    model: RetrievalModel
    epoch: int
    options: dict[str, Any] | None
    sha256: str


def write_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Replace `path` at once."""
    # Through memory: torch reports a full disk as an error of its own that hides the reason.
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    write_bytes(path, lambda file: file.write(buffer.getbuffer()))


def model_content(model: RetrievalModel, epoch: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """What `model.ckpt` holds; `options` must be plain values.

    InputError for weights that are not finite, so that they replace no others.
    """
    weights = {name: weight.detach().cpu().clone() for name, weight in model.state_dict().items()}
    broken = [name for name, weight in weights.items() if not torch.isfinite(weight).all()]
    if broken:
        raise InputError(
            f"epoch {epoch}: the weights have become NaN or infinite ({summarize(broken)}) and are not saved"
        )
    return {"model": weights, "epoch": epoch, "architecture": model.architecture.as_dict(), "options": dict(options)}


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint's content onto the CPU; nothing that it brings along is ever run.

    InputError for a file that is missing, broken, not a checkpoint, or that holds anything but tensors and plain data.
    """
    require_file(path)
    with path.open("rb") as file:
        return _read(file, path)


def _read(file: BinaryIO, path: Path) -> dict[str, Any]:
    try:
        _check_archive(file)
        file.seek(0)
        with torch.serialization.safe_globals(_HARMLESS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on foreign pickles, which are refused below
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if kind := describe(path):
            raise InputError(f"{path}: {_NO_CHECKPOINT}: {_EXPECTED}, found {kind}") from error
        wanted = str(error).split("GLOBAL ")[1].split(" ")[0] if "GLOBAL " in str(error) else ""
        brings = (
            f"asks for {wanted}" if wanted else "brings code or objects beside tensors and plain data, or is damaged"
        )
        raise InputError(f"{path}: refused as a checkpoint: it {brings}; nothing of it was run") from error
    except _UNREADABLE as error:
        kind = describe(path)
        reason = f": {_EXPECTED}, found {kind}" if kind else f" ({_first_line(error)})"
        raise InputError(f"{path}: {_NO_CHECKPOINT}{reason}") from error
    weights = content.get("model") if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in weights.items()
    ):
        found = f", found {summarize([shown(key) for key in content])}" if isinstance(content, dict) else ""
        raise InputError(f"{path}: expected a checkpoint with the weights under 'model'{found}")
    if odd := [name for name, value in weights.items() if not is_plain(value)]:
        raise InputError(f"{path}: weights that are no plain arrays of numbers: {summarize(odd)}")
    content["model"] = current_names(weights, str(path))
    epoch = content.setdefault("epoch", 0)
    if not isinstance(epoch, int | np.integer) or isinstance(epoch, bool) or epoch < 0:
        raise InputError(f"{path}: expected a whole number, at least 0, under 'epoch', found {shown(epoch)}")
    content["epoch"] = int(epoch)
    return content


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is an ordinary array in memory, with a number for each of its places."""
    if tensor.layout != torch.strided or tensor.is_nested or tensor.is_quantized or tensor.device.type != "cpu":
        return False
    # A file of a few bytes can declare an array of any size whose places all show the same number.
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _check_archive(file: BinaryIO) -> None:
    """Compare every record of a zip archive with its checksum: torch reads weights with flipped bits without a word."""
    if file.read(2) != b"PK":  # the older format, which has no checksums
        return
    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()
        if sum(record.file_size for record in records) > file.seek(0, os.SEEK_END):
            raise zipfile.BadZipFile("its records are larger than the file")
        if any(record.external_attr & _DOS_FOLDER for record in records):  # torch would read them as empty
            raise zipfile.BadZipFile("its table of contents is damaged")
        damaged = archive.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"record {damaged} does not fit its checksum")


def stored_options(path: Path) -> dict[str, Any] | None:
    """The options that a checkpoint of ours was trained with; None for a published one."""
    options = read_checkpoint(path).get("options")
    return dict(options) if isinstance(options, dict) else None


def load_model(path: Path, architecture: Architecture) -> Loaded:
    """Make the model of a checkpoint, on the CPU and in evaluation mode.

    Args:
        path: a checkpoint of ours, which carries its architecture, or a published one.
        architecture: what the options say; used for a published one only.

    Raises:
        InputError: as `read_checkpoint`, for weights that do not fit, each by name, and for a file that somebody
            writes to meanwhile.
    """
    require_file(path)
    with path.open("rb") as file:  # a training may put another file in its place meanwhile: this one is both read
        before = os.fstat(file.fileno())
        digest = sha256_of(file)
        file.seek(0)
        content = _read(file, path)
        after = os.fstat(file.fileno())
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise InputError(f"{path}: written to while it was read; try again")
    published = is_published(content["model"])
    if published:
        architecture = published_architecture(architecture)
        weights = from_published(content["model"], architecture, str(path))
    else:
        architecture = _architecture_of(content, path)
        weights = content["model"]
    with torch.device("meta"):  # no memory is asked for before it is known that the file has as many numbers
        sketch = RetrievalModel(architecture)
    check_weights(sketch, weights, path)
    if published:
        check_scales(weights, architecture, str(path))
    with torch.random.fork_rng(devices=[]):  # weights that are replaced must not cost a run its random numbers
        model = RetrievalModel(architecture)
    model.load_state_dict(weights)
    options = content.get("options")
    if not published and not isinstance(options, dict):
        raise InputError(f"{path}: expected the options of its training under 'options'")
    return Loaded(model.eval(), content["epoch"], None if published else options, digest)


def log_model_options(options: Mapping[str, Any], loaded: Loaded) -> None:
    """Say where a checkpoint of ours overrules the options, and what had to be assumed of a published one."""
    found = loaded.model.architecture
    if loaded.options is None:
        if options["fusion_extent"] not in (None, found.fusion_extent):
            log.warning("published weights decide: fusion_extent is %s", found.fusion_extent)
        assumed = " ".join(f"--{name} {options[name]}" for name in options_without_trace(found))
        log.info("published weights show no trace of these options, assumed: %s", assumed)
        return
    asked, decided = _flat(make_architecture(options).as_dict()), _flat(found.as_dict())
    for name in sorted(asked.keys() | decided.keys()):
        value, wanted = decided.get(name), asked.get(name)
        if name != "temperatures" and value != wanted:
            log.warning("the checkpoint decides: %s is %s, not %s", name, value, wanted)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested fields by their names joined with dots."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def check_weights(model: RetrievalModel, weights: Mapping[str, Tensor], path: Path) -> None:
    """InputError listing every weight that is missing, unknown, misshapen or not finite."""
    own = model.state_dict()
    problems = [f"{name} is missing" for name in own if name not in weights]
    problems += [f"{name} is not expected" for name in weights if name not in own]
    shared = [name for name in own if name in weights]
    for name in shared:
        if own[name].shape != weights[name].shape:
            problems.append(f"{name} is {tuple(weights[name].shape)}, expected {tuple(own[name].shape)}")
        elif weights[name].dtype not in _REAL_NUMBERS:
            problems.append(f"{name} is of type {weights[name].dtype}, expected real numbers")
        elif not torch.isfinite(weights[name].float()).all():
            problems.append(f"{name} holds NaN or infinity in 32 bits")
    if problems:
        raise InputError(f"{path}: weights do not fit the model: {'; '.join(problems)}")


def _architecture_of(content: Mapping[str, Any], path: Path) -> Architecture:
    stored = content.get("architecture")
    if not isinstance(stored, dict):
        raise InputError(f"{path}: neither a published checkpoint nor one of ours, which has an 'architecture'")
    try:
        architecture = Architecture.from_dict(stored)
        if architecture.head not in HEADS:
            raise ValueError(f"head is {shown(architecture.head)}, expected one of {', '.join(HEADS)}")
        return architecture
    except ValueError as error:
        raise InputError(f"{path}: not the architecture of a model: {error}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].split(". ")[0]
