"""Progress bars on a terminal, and plain lines of the log where there is none."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

_state = {"quiet": False}


def be_quiet(quiet: bool) -> None:
    """Show no bars, and of the log only warnings and errors; files still get all of it."""
    _state["quiet"] = quiet
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            handler.setLevel(logging.WARNING if quiet else logging.NOTSET)


def progress_bar(items: Iterable[Any], what: str, unit: str, **settings: Any) -> Any:
    """A tqdm bar that goes away when it is done, and never comes when that is sooner than a second."""
    hidden = True if _state["quiet"] else None  # None: unless standard error is a terminal
    return tqdm(items, desc=what, unit=unit, leave=False, disable=hidden, **{"delay": 1, **settings})
