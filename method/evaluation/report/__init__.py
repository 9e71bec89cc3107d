"""The report of an evaluation, drawn after its metrics are written."""

import contextlib
import logging
import os
from collections.abc import Iterator

log = logging.getLogger(__name__)


@contextlib.contextmanager
def drawing(what: str) -> Iterator[None]:
    """Import the drawing library and draw inside this block: a failure is one warning line, not the end of the run.

    A notebook exports MPLBACKEND to the programs it starts, and Matplotlib does not even import where that backend is
    not installed. Figures here are only ever saved, so that it is ignored.
    """
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        yield
    except Exception as error:  # any error: the metrics are written, and a missing figure is no reason to fail
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        log.warning("%s could not be drawn, the metrics are complete (%s)", what, reason)
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
