"""SIGINT and SIGTERM ask a run to stop where it can be taken up again; a second one stops it at once."""

from __future__ import annotations

import logging
import os
import signal
from types import FrameType
from typing import Any

log = logging.getLogger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequests:
    """While this context is open, `received` is the first signal that asked the program to stop, or None.

    repeated: whether a signal may come twice, from a terminal to all processes and from torchrun, which passes it on,
        so that a second one means nothing.
    """

    def __init__(self, repeated: bool = False) -> None:
        self.received: int | None = None
        self._repeated = repeated
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequests:
        self._before = {number: signal.signal(number, self._receive) for number in _SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = number
            more = "" if self._repeated else "; once more stops at once"
            log.warning("%s: stopping after this step%s", signal.Signals(number).name, more)
        elif not self._repeated:
            os._exit(128 + number)
