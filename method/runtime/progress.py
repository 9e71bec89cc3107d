"""Progress bars, which are also where long loops can be interrupted."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tqdm import tqdm

_state = {"quiet": False}
_checks: list[Callable[[], None]] = []


@contextlib.contextmanager
def interruptible(check: Callable[[], None]) -> Iterator[None]:
    """In this block every progress bar calls `check` before and after each item; it may raise to stop the loop."""
    _checks.append(check)
    try:
        yield
    finally:
        _checks.pop()


def poll() -> None:
    """Call the check of the enclosing `interruptible` block, for loops without a progress bar."""
    if _checks:
        _checks[-1]()


def be_quiet(quiet: bool) -> None:
    """Show no bars, and only warnings and errors on the terminal; log files still get all lines."""
    _state["quiet"] = quiet
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            handler.setLevel(logging.WARNING if quiet else logging.NOTSET)


def progress_bar(items: Iterable[Any], what: str, unit: str, **settings: Any) -> Any:
    """A tqdm bar that is cleared at the end, and not shown for loops shorter than a second."""
    hidden = True if _state["quiet"] else None  # None hides it if stderr is not a terminal
    return _Bar(items, desc=what, unit=unit, leave=False, disable=hidden, **{"delay": 1, **settings})


class _Bar(tqdm):  # type: ignore[type-arg]  # not generic at run time
    def __iter__(self) -> Iterator[Any]:
        for item in super().__iter__():
            poll()
            yield item
            poll()
