"""Weights of I3D drawn from their names, of the published widths or of narrow layers."""

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tests.helpers.golden_case import draw
from tests.helpers.paths import GOLDEN

SHAPES = json.loads((GOLDEN / "i3d_shapes.json").read_text())


def i3d_weights(divisor: int = 1) -> dict[str, Tensor]:
    """A state dict as golden/README.md says; the numbers of channels, the three of the input aside, divided."""
    return {name: _weight(name, _narrow(shape, divisor)) for name, shape in SHAPES.items()}


def write_small_i3d(path: Path) -> Path:
    """A weight file of a network that is 16 times as narrow."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(i3d_weights(16), path)
    return path


def _narrow(shape: list[int], divisor: int) -> tuple[int, ...]:
    return tuple(size if size < 16 else size // divisor for size in shape)


def _weight(name: str, shape: tuple[int, ...]) -> Tensor:
    if name.endswith("num_batches_tracked"):
        return torch.tensor(0)
    values = torch.from_numpy(draw(name, shape))
    if name.endswith(".bn.weight"):
        return 1 + 0.1 * values
    if name.endswith("running_var"):
        return 1 + 0.1 * values.abs()
    if name.endswith(("running_mean", ".bias")):
        return 0.1 * values
    return values * float(np.sqrt(2 / np.prod(shape[1:])))
