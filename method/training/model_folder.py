"""Models as folders in the form that model hubs expect: weights as safetensors, the rest as JSON, and no pickle.

`model.safetensors` has the weights, `config.json` the epoch, the architecture and the options, `metrics.json` what was
measured, if anything was, and `README.md` is the model card (`model_card.py`).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from method.config.flags import PER_CALL_FLAGS
from method.model.architecture import Architecture
from method.model.retrieval import RetrievalModel, find_head
from method.model.weight_names import current_names
from method.runtime.errors import InputError, shown
from method.runtime.files import atomic_folder, read_json, require_file, write_bytes, write_json, write_text
from method.runtime.hub.models import CARD, CONFIG, MAX_CONFIG_BYTES, METRICS, WEIGHTS

_FORMAT = "a3prvr.model/1"
# Options of one machine or one run, which mean nothing elsewhere.
_LOCAL = {
    *PER_CALL_FLAGS,
    *("root_path", "results_root", "exp_id", "config", "num_workers", "pin_memory", "feature_cache", "neg_cache"),
    *("features_on_device", "save_every_steps", "topk", "visual_feature"),
}
_BYTES_A_WEIGHT = 8  # of float64, the widest type that is read
_HEADER_BYTES = 1 << 20


def write_model_folder(folder: Path, content: Mapping[str, Any], metrics: Mapping[str, Any] | None, card: str) -> None:
    """Write a model as a folder, atomically.

    Args:
        folder: must not exist.
        content: of a checkpoint: `model`, `epoch`, `architecture`, `options`.
        metrics: for metrics.json; None for none.
        card: text of README.md.
    """
    config = {
        "model_type": "a3prvr",
        "format": _FORMAT,
        **{name: content[name] for name in ("epoch", "architecture")},
        "options": portable(content["options"]),
    }
    weights = safetensors.torch.save(dict(content["model"]), {"format": "pt"})
    with atomic_folder(folder) as partial:
        write_bytes(partial / WEIGHTS, lambda file: file.write(weights))
        write_json(partial / CONFIG, config)
        if metrics is not None:
            write_json(partial / METRICS, dict(metrics))
        write_text(partial / CARD, card)


def portable(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options without those of one machine or run, and without absolute paths."""
    return {
        name: value
        for name, value in options.items()
        if name not in _LOCAL and not (isinstance(value, str) and Path(value).is_absolute())
    }


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json of a folder. InputError if it is missing or not that of a model of this program."""
    path = folder / CONFIG
    if not path.is_file():
        raise InputError(f"{folder}: expected a checkpoint or a folder with {CONFIG} and {WEIGHTS}, found no {CONFIG}")
    config = read_json(path, MAX_CONFIG_BYTES)
    if not isinstance(config, dict) or config.get("format") != _FORMAT:
        found = shown(config.get("format")) if isinstance(config, dict) else shown(config)
        raise InputError(f"{path}: format is {found}, expected {_FORMAT!r}, as utils/convert_checkpoint.py writes it")
    epoch = config.get("epoch")
    if not isinstance(epoch, int) or isinstance(epoch, bool) or epoch < 0:
        raise InputError(f"{path}: epoch is {shown(epoch)}, expected a whole number, at least 0")
    if not isinstance(config.get("options"), dict):
        raise InputError(f"{path}: expected the options of the training under 'options'")
    return config


def read_model_folder(folder: Path) -> tuple[dict[str, Any], str]:
    """The content of a checkpoint from a folder, and the SHA-256 of its weights; nothing in it is executed.

    InputError for files that are missing or malformed, and for weights larger than the model of config.json, which are
    not read.
    """
    config, path = read_config(folder), folder / WEIGHTS
    require_file(path)
    with torch.device("meta"):  # allocates nothing
        expected = RetrievalModel(architecture_of(config, folder / CONFIG)).state_dict()
    largest = _BYTES_A_WEIGHT * sum(weight.numel() for weight in expected.values()) + _HEADER_BYTES
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > largest:
            raise InputError(f"{path}: {size} bytes, expected at most {largest} for the model of {CONFIG}")
        data = file.read(size)
    try:
        weights = safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise InputError(f"{path}: not a readable safetensors file ({error})") from error
    return {**config, "model": current_names(weights, str(path))}, hashlib.sha256(data).hexdigest()


def architecture_of(content: Mapping[str, Any], path: Path) -> Architecture:
    """The architecture that a checkpoint or a config.json stores. InputError for none, and for an invalid one."""
    stored = content.get("architecture")
    if not isinstance(stored, dict):
        raise InputError(f"{path}: expected a published checkpoint, or one with an 'architecture'; found neither")
    try:
        architecture = Architecture.from_dict(stored)
        find_head(architecture.head)
        return architecture
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: invalid architecture: {error}") from error
