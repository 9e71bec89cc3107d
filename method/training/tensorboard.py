"""Curves of a run in TensorBoard: losses, learning rate, recall, timing, and final metrics beside the options."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter

log = logging.getLogger(__name__)

EVERY = 10  # steps between values that have to be copied from the device

_FLUSH_SECONDS = 30

_Metrics = Mapping[str, Mapping[str, float]]


class Monitor:
    """Writes `tensorboard/` of a run. Steps are counted over all epochs.

    When it cannot be written, for example because the disk is full, the run continues without curves.

    Args:
        folder: of the run; None writes nothing.
        steps_done: steps of a resumed run; later ones, which a killed process logged, are hidden.
        options: plain options, shown as text and as hyper-parameters.
    """

    def __init__(self, folder: Path | None, steps_done: int, options: Mapping[str, Any]) -> None:
        self._writer: SummaryWriter | None = None
        self._thread_hook = threading.excepthook
        self._options = {name: value for name, value in options.items() if value is not None}
        if folder is None:
            return
        threading.excepthook = self._on_thread_error
        path, first_step = str(folder / "tensorboard"), steps_done + 1
        try:
            self._writer = SummaryWriter(path, purge_step=first_step, flush_secs=_FLUSH_SECONDS)
        except Exception as error:
            self._give_up(error)
        text = f"```json\n{json.dumps(dict(options), indent=2)}\n```"
        self._write(SummaryWriter.add_text, "options", text, steps_done)

    def _write(self, method: Callable[..., None], *arguments: Any, **named: Any) -> None:
        if self._writer is None:
            return
        try:
            method(self._writer, *arguments, **named)
        except Exception as error:  # with TensorFlow installed, files fail with exceptions of its own
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        reason = getattr(error, "strerror", None) or error
        log.warning("tensorboard/ cannot be written (%s): no curves from here on", reason)
        self._writer = None

    def scalars(self, group: str, values: Mapping[str, float], step: int) -> None:
        """Log the numbers of a step under `group`."""
        for name, value in values.items():
            self._write(SummaryWriter.add_scalar, f"{group}/{name}", value, step)

    def metrics(self, metrics: _Metrics, step: int) -> None:
        """Log an evaluation that follows `step`."""
        for score, values in metrics.items():
            self.scalars(score, values, step)
        self._write(SummaryWriter.flush)

    def figures(self, figures: Mapping[str, Any], step: int) -> None:
        """Log figures of an evaluation."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # importing matplotlib takes a second

        for name, figure in figures.items():
            canvas = FigureCanvasAgg(figure)  # drawn here, so that only errors of writing count as such
            canvas.draw()
            self._write(
                SummaryWriter.add_image, name, np.asarray(canvas.buffer_rgba())[..., :3], step, dataformats="HWC"
            )

    def result(self, metrics: _Metrics) -> None:
        """Log the hyper-parameters with the final metrics."""
        options = {name: v if isinstance(v, bool | int | float) else _utf8(str(v)) for name, v in self._options.items()}
        results = {f"final/{name}": value for name, value in metrics["fused"].items()}
        # run_name ".": as part of this run instead of a run of its own
        self._write(SummaryWriter.add_hparams, options, results, run_name=".")

    def close(self) -> None:
        """Write what is left."""
        self._write(SummaryWriter.close)
        self._writer = None
        threading.excepthook = self._thread_hook

    def _on_thread_error(self, error: threading.ExceptHookArgs) -> None:
        """Print no traceback of the writer's thread: its exception is raised again by the next call of the writer."""
        if not type(error.thread).__module__.startswith("tensorboard."):
            self._thread_hook(error)


def _utf8(text: str) -> str:
    """The text with bytes of file names that are not valid UTF-8 as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()
