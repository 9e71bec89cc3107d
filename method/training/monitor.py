"""TensorBoard's view of a run: losses, learning rate, recall, where the time goes, and what came of which options."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

EVERY = 10  # steps between numbers that have to be fetched from the device

_Metrics = Mapping[str, Mapping[str, float]]


class Monitor:
    """Writes one run's `tensorboard/`. Steps are counted over all epochs.

    Args:
        folder: of the run.
        first_step: the step that a resumed run goes on with; what a killed process wrote behind it is hidden.
        options: plain options, shown as text and as hyper-parameters.
    """

    def __init__(self, folder: Path, first_step: int, options: Mapping[str, Any]) -> None:
        self._writer: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step or None)
        self._options = {name: value for name, value in options.items() if value is not None}
        self._writer.add_text("options", f"```json\n{json.dumps(dict(options), indent=2)}\n```", first_step)

    def scalars(self, group: str, values: Mapping[str, float], step: int) -> None:
        """Numbers of one step, under a heading."""
        for name, value in values.items():
            self._writer.add_scalar(f"{group}/{name}", value, step)

    def metrics(self, metrics: _Metrics, step: int) -> None:
        """An evaluation, made after `step`."""
        for score, values in metrics.items():
            self.scalars(score, values, step)
        self._writer.flush()

    def figures(self, figures: Mapping[str, Any], step: int) -> None:
        """Pictures of an evaluation."""
        for name, figure in figures.items():
            self._writer.add_figure(name, figure, step)

    def result(self, metrics: _Metrics) -> None:
        """The hyper-parameters beside what came of them."""
        plain = {name: v if isinstance(v, bool | int | float | str) else str(v) for name, v in self._options.items()}
        results = {f"final/{name}": value for name, value in metrics["fused"].items()}
        # Into the run's own folder: SummaryWriter.add_hparams would make a run of its own for them.
        for summary in hparams(plain, results):
            self._writer.file_writer.add_summary(summary)
        for name, value in results.items():
            self._writer.add_scalar(name, value, 0)

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


def memory_mb(device: torch.device) -> float:
    """Largest memory held so far, in MiB: of tensors on a GPU, of the process elsewhere (0 where it cannot be told)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    if not status.exists():
        return 0.0
    peak = next((line for line in status.read_text().splitlines() if line.startswith("VmHWM")), "VmHWM: 0")
    return float(peak.split()[1]) / 1024
