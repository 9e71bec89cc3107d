"""The content of checkpoints, and loading models from them.

A checkpoint is {"model", "epoch", "architecture", "options", ...}, with the values of options that were fitted under
"fitted"; a published one is {"model", "epoch", ...} with the published weight names.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from method.config.parser import FITTED
from method.model.architecture import Architecture
from method.model.branch_spec import is_number
from method.model.published import (
    check_scales,
    from_published,
    is_published,
    options_without_trace,
    published_architecture,
)
from method.model.retrieval import RetrievalModel
from method.runtime.errors import InputError, shown, summarize
from method.runtime.files import require_file, sha256_of
from method.training.checkpoint_file import read_checkpoint, read_open_checkpoint
from method.training.model_folder import architecture_of, read_config, read_model_folder

log = logging.getLogger(__name__)

_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True)
class Loaded:
    """A model from a checkpoint, with the rest of its content.

    options: those it was trained with; None for a published checkpoint.
    sha256: hex digest of the file.
    """

    model: RetrievalModel
    epoch: int
    options: dict[str, Any] | None
    sha256: str


def model_content(
    model: RetrievalModel, epoch: int, options: Mapping[str, Any], fitted: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """The content of `model.ckpt`; `options` must be plain values, `fitted` has those that the training has fitted.

    InputError for weights that are not finite, so that a good checkpoint is not overwritten by them.
    """
    weights = {name: weight.detach().cpu().clone() for name, weight in model.state_dict().items()}
    broken = [name for name, weight in weights.items() if not torch.isfinite(weight).all()]
    if broken:
        raise InputError(f"epoch {epoch}: the weights are not finite ({summarize(broken)}); not saved")
    content = {"epoch": epoch, "architecture": model.architecture.as_dict(), "options": dict(options)}
    return {"model": weights, **content, **({"fitted": dict(fitted)} if fitted else {})}


def stored_options(path: Path) -> dict[str, Any] | None:
    """The options that a checkpoint was trained with, including the fitted ones; None for a published one."""
    return _options_in(read_config(path) if path.is_dir() else read_checkpoint(path), path)


def _options_in(content: Mapping[str, Any], path: Path) -> dict[str, Any] | None:
    """InputError for a fitted weight that is missing or not a fraction."""
    options = content.get("options")
    if not isinstance(options, dict) or options.get("fusion_weight") != FITTED:
        return options if isinstance(options, dict) else None
    fitted = content.get("fitted")
    weight = fitted.get("fusion_weight") if isinstance(fitted, dict) else None
    if not is_number(weight, 1):
        raise InputError(f"{path}: expected the fitted fusion_weight, a fraction from 0 to 1, found {shown(weight)}")
    return {**options, "fusion_weight": weight}


def load_model(path: Path, architecture: Architecture) -> Loaded:
    """Load the model of a checkpoint, on the CPU and in evaluation mode.

    Args:
        path: one that stores its architecture, or a published one; or the folder of an exported model.
        architecture: the one the options describe; used for a published checkpoint only.

    Raises:
        InputError: as `read_checkpoint`, for weights that do not fit, listed by name, and for a file that changes
            while it is read.
    """
    content, digest = read_model_folder(path) if path.is_dir() else _read_file(path)
    published = is_published(content["model"])
    if published:
        architecture = published_architecture(architecture)
        weights = from_published(content["model"], architecture, str(path))
    else:
        architecture = architecture_of(content, path)
        weights = content["model"]
    with torch.device("meta"):  # allocate nothing before the sizes are known to match the file
        skeleton = RetrievalModel(architecture)
    check_weights(skeleton, weights, path)
    if published:
        check_scales(weights, architecture, str(path))
    if rounded := sorted({str(weight.dtype).removeprefix("torch.") for weight in weights.values()} - {"float32"}):
        log.warning("%s: has weights in %s; they are used in float32", path, " and ".join(rounded))
    with torch.random.fork_rng(devices=[]):  # initial weights must not advance the generator
        model = RetrievalModel(architecture)
    model.load_state_dict(weights)
    options = _options_in(content, path)
    if not published and options is None:
        raise InputError(f"{path}: expected the options of its training under 'options'")
    return Loaded(model.eval(), content["epoch"], None if published else options, digest)


def _read_file(path: Path) -> tuple[dict[str, Any], str]:
    """The content of a checkpoint file and its SHA-256."""
    require_file(path)
    with path.open("rb") as file:  # hash and read the same file, even if a training replaces it meanwhile
        before = os.fstat(file.fileno())
        digest = sha256_of(file)
        file.seek(0)
        content = read_open_checkpoint(file, path)
        after = os.fstat(file.fileno())
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise InputError(f"{path}: changed while it was read; try again")
    return content, digest


def log_model_options(loaded: Loaded, described: Architecture, options: Mapping[str, Any]) -> None:
    """Log where a checkpoint overrides the options, and what is assumed about a published one.

    Args:
        loaded: the model.
        described: the architecture that the options describe.
        options: by name, as messages show them.
    """
    found = loaded.model.architecture
    if loaded.options is None:
        if options["fusion_extent"] not in (None, found.fusion_extent):
            log.warning(
                "using fusion_extent=%s from the published weights (command line: %s)",
                *(found.fusion_extent, options["fusion_extent"]),
            )
        assumed = " ".join(f"--{name} {options[name]}" for name in options_without_trace(found))
        log.info("assuming options that published weights do not record: %s", assumed)
        return
    given, stored = _flat(asdict(described)), _flat(asdict(found))
    for name in sorted(given.keys() | stored.keys()):
        if name != "temperatures" and given.get(name) != stored.get(name):
            log.warning("using %s=%s from the checkpoint (command line: %s)", name, stored.get(name), given.get(name))


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested fields by their names joined with dots."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def check_weights(model: RetrievalModel, weights: Mapping[str, Tensor], path: Path) -> None:
    """InputError listing every weight that is missing, unknown, misshapen or not finite."""
    expected = model.state_dict()
    problems = [f"{name} is missing" for name in expected if name not in weights]
    problems += [f"{name} is not expected" for name in weights if name not in expected]
    shared = [name for name in expected if name in weights]
    for name in shared:
        if expected[name].shape != weights[name].shape:
            problems.append(f"{name} is {tuple(weights[name].shape)}, expected {tuple(expected[name].shape)}")
        elif weights[name].dtype not in _FLOATS:
            problems.append(f"{name} is of type {weights[name].dtype}, expected floating point")
        elif not torch.isfinite(weights[name].float()).all():
            problems.append(f"{name} is not finite as float32")
    if problems:
        raise InputError(f"{path}: weights do not fit the model: {'; '.join(problems)}")
