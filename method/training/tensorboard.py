"""TensorBoard's view of a run: losses, learning rate, recall, where the time goes, and what came of which options."""

from __future__ import annotations

import io
import itertools
import json
import logging
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import hparams, scalar, text

log = logging.getLogger(__name__)

EVERY = 10  # steps between numbers that have to be fetched from the device

_FLUSH_SECONDS = 30.0
_numbers = itertools.count()

_Metrics = Mapping[str, Mapping[str, float]]


class _Events:
    """An event file of TensorBoard. When it cannot be written, the run loses its curves and nothing else.

    TensorBoard's own writer has a thread that dies with a traceback when the disk is full.
    """

    def __init__(self, folder: Path | None) -> None:
        self._buffer = io.BytesIO()
        self._records: Any = RecordWriter(self._buffer)
        self._flushed = 0.0
        self._file: io.FileIO | None = None
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_numbers)}"
        try:
            if folder is not None:
                folder.mkdir(exist_ok=True)
                self._file = (folder / name).open("xb", buffering=0)
        except OSError as error:
            self._give_up(error)
        self.add(Event(file_version="brain.Event:2"))

    def add(self, event: Any, step: int = 0) -> None:
        """Add an event, which is on the disk seconds later."""
        event.wall_time, event.step = time.time(), step
        self._records.write(event.SerializeToString())
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what has been added."""
        self._flushed = time.monotonic()
        waiting = memoryview(self._buffer.getvalue())
        self._buffer.seek(0)
        self._buffer.truncate()
        try:
            while waiting and self._file is not None:
                waiting = waiting[self._file.write(waiting) :]
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        """Write what is left."""
        self.flush()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _give_up(self, error: OSError) -> None:
        log.warning("tensorboard/ cannot be written (%s): no curves from here on", error.strerror)
        if self._file is not None:
            self._file.close()
            self._file = None


class Monitor:
    """Writes one run's `tensorboard/`. Steps are counted over all epochs.

    Args:
        folder: of the run; None writes nothing.
        first_step: the step that a resumed run goes on with; what a killed process wrote behind it is hidden.
        options: plain options, shown as text and as hyper-parameters.
    """

    def __init__(self, folder: Path | None, first_step: int, options: Mapping[str, Any]) -> None:
        self._events = _Events(folder / "tensorboard" if folder is not None else None)
        if first_step:
            self._events.add(Event(session_log=SessionLog(status=SessionLog.START)), first_step)
        self._options = {name: value for name, value in options.items() if value is not None}
        self._add(text("options", f"```json\n{json.dumps(dict(options), indent=2)}\n```"), first_step)

    def _add(self, summary: Any, step: int = 0) -> None:
        self._events.add(Event(summary=summary), step)

    def scalars(self, group: str, values: Mapping[str, float], step: int) -> None:
        """Numbers of one step, under a heading."""
        for name, value in values.items():
            self._add(scalar(f"{group}/{name}", value), step)

    def metrics(self, metrics: _Metrics, step: int) -> None:
        """An evaluation, made after `step`."""
        for score, values in metrics.items():
            self.scalars(score, values, step)
        self._events.flush()

    def figures(self, figures: Mapping[str, Any], step: int) -> None:
        """Pictures of an evaluation."""
        for name, figure in figures.items():
            drawn = io.BytesIO()
            figure.savefig(drawn, format="png", dpi=figure.dpi)
            width, height = (round(inches * figure.dpi) for inches in figure.get_size_inches())
            image = Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=drawn.getvalue())
            self._add(Summary(value=[Summary.Value(tag=name, image=image)]), step)

    def result(self, metrics: _Metrics) -> None:
        """The hyper-parameters beside what came of them."""
        plain = {name: v if isinstance(v, bool | int | float) else _utf8(str(v)) for name, v in self._options.items()}
        results = {f"final/{name}": value for name, value in metrics["fused"].items()}
        # Into the run's own folder: SummaryWriter.add_hparams would make a run of its own for them.
        for summary in hparams(plain, results):
            self._add(summary)
        for name, value in results.items():
            self._add(scalar(name, value))

    def close(self) -> None:
        """Write what is left."""
        self._events.close()


def _utf8(text: str) -> str:
    """Text in which bytes of a file's name that are no UTF-8 are escapes."""
    return text.encode("utf-8", "backslashreplace").decode()
