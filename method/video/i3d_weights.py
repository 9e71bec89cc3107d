"""The published weight files of I3D: read by their names, checked, and batch norm folded into the convolutions."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from method.runtime.errors import InputError, summarize
from method.runtime.file_kinds import describe
from method.runtime.files import require_file

_BN_EPS = 0.001
UNITS = ("Conv3d_1a_7x7", "Conv3d_2b_1x1", "Conv3d_2c_3x3")
MIXED = ("3b", "3c", "4b", "4c", "4d", "4e", "4f", "5b", "5c")
PARTS = ("b0", "b1a", "b1b", "b2a", "b2b", "b3b")
_KERNELS = {"Conv3d_1a_7x7": 7, "Conv3d_2c_3x3": 3, "b1b": 3, "b2b": 3}  # others 1
_BN_PARTS = ("weight", "bias", "running_mean", "running_var")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a weight file; nothing in it is executed.

    InputError unless it holds the weights of an RGB I3D by their published names, the classifier aside.
    """
    require_file(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        found = describe(path) or str(error).split("\n", 1)[0]
        raise InputError(f"{path}: not a file of I3D weights ({found})") from error
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise InputError(f"{path}: a {type(state).__name__}, expected a state dict of I3D weights")
    expected = set(_names())
    names = {name for name in state if not name.startswith("logits.") and not name.endswith("num_batches_tracked")}
    if names != expected:
        missing, extra = sorted(expected - names), sorted(names - expected)
        problems = [f"{len(missing)} missing ({summarize(missing, 2)})"] * bool(missing)
        problems += [f"{len(extra)} unknown ({summarize(extra, 2)})"] * bool(extra)
        raise InputError(f"{path}: not the weights of I3D: {', '.join(problems)} of {len(expected)} weights")
    _check_shapes(state, path)
    return {name: state[name].float() for name in expected}


def _check_shapes(state: Mapping[str, Tensor], path: Path) -> None:
    """InputError unless every layer takes what the one before it gives."""
    problems = []
    for unit, channels in _inputs(state).items():
        kernel = _KERNELS.get(unit.rsplit(".", 1)[-1], 1)
        out = _channels(state, unit)[0]
        expected: dict[str, tuple[int, ...]] = {f"{unit}.conv3d.weight": (out, channels, kernel, kernel, kernel)}
        expected |= {f"{unit}.bn.{part}": (out,) for part in _BN_PARTS}
        for name, shape in expected.items():
            if tuple(state[name].shape) != shape:
                problems.append(f"{name} has the shape {tuple(state[name].shape)}, expected {shape}")
            elif not state[name].isfinite().all():
                problems.append(f"{name} is not finite")
    if problems:
        raise InputError(f"{path}: {summarize(problems, 2)}")


def _inputs(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Every unit -> the number of channels that it gets."""
    inputs, channels = {}, 3
    for unit in UNITS:
        inputs[unit] = channels
        channels = _channels(state, unit)[0]
    for name in MIXED:
        given = {"b1b": "b1a", "b2b": "b2a"}
        for part in PARTS:
            before = given.get(part)
            inputs[f"Mixed_{name}.{part}"] = _channels(state, f"Mixed_{name}.{before}")[0] if before else channels
        channels = output_channels(state, name)
    return inputs


def _names() -> list[str]:
    units = [*UNITS, *(f"Mixed_{name}.{part}" for name in MIXED for part in PARTS)]
    return [f"{unit}.{name}" for unit in units for name in ("conv3d.weight", *(f"bn.{part}" for part in _BN_PARTS))]


def _channels(state: Mapping[str, Tensor], unit: str) -> tuple[int, ...]:
    return tuple(state[f"{unit}.conv3d.weight"].shape) or (0,)


def output_channels(state: Mapping[str, Tensor], mixed: str) -> int:
    """The number of channels that an Inception module gives."""
    return sum(_channels(state, f"Mixed_{mixed}.{part}")[0] for part in ("b0", "b1b", "b2b", "b3b"))


def fold_unit(state: Mapping[str, Tensor], unit: str) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution with its batch norm: w g / sqrt(v + eps), b - m g / sqrt(v + eps)."""
    gain, bias, mean, variance = (state[f"{unit}.bn.{part}"].double() for part in _BN_PARTS)
    scale = gain / (variance + _BN_EPS).sqrt()
    weight = state[f"{unit}.conv3d.weight"].double() * scale[:, None, None, None, None]
    return weight.float(), (bias - mean * scale).float()
