"""TensorBoard's view of a run: losses, learning rate, recall and where the time goes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter


class Monitor:
    """Writes one run's `tensorboard/`."""

    def __init__(self, folder: Path, first_step: int) -> None:
        # What a killed process wrote behind the state that is gone on from is hidden.
        self._writer: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step or None)

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of one step, counted over all epochs."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def epoch(self, step: int, metrics: Mapping[str, Mapping[str, float]]) -> None:
        """Metrics of an evaluation, at the step after which it was made."""
        for score, values in metrics.items():
            for name, value in values.items():
                self._writer.add_scalar(f"{name}/{score}", value, step)
        self._writer.flush()

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()
