"""SIGINT and SIGTERM request a stop that saves the run; a second signal quits immediately."""

from __future__ import annotations

import logging
import os
import signal
from types import FrameType
from typing import Any

log = logging.getLogger(__name__)

FORWARDED = "A3PRVR_FORWARDED_SIGNALS"  # environment variable of a program that sends its signals on to this one
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequests:
    """A context in which `received` is the first SIGINT or SIGTERM, or None.

    repeated: ignore further signals. Under torchrun each signal may arrive twice, from the terminal and from torchrun,
        and so it may under a program that sets FORWARDED.
    """

    def __init__(self, repeated: bool = False) -> None:
        self.received: int | None = None
        self._repeated = repeated or FORWARDED in os.environ
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequests:
        self._before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = number
            more = "" if self._repeated else "; press Ctrl-C again to quit without saving"
            log.warning("%s: stopping after this step%s", signal.Signals(number).name, more)
        elif not self._repeated:
            os._exit(128 + number)
