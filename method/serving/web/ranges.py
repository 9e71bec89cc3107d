"""Video files and the parts of them that a request names."""

from __future__ import annotations

import re
from pathlib import Path

from flask import abort, request, send_file
from werkzeug.exceptions import RequestedRangeNotSatisfiable
from werkzeug.wrappers import Response
from werkzeug.wsgi import wrap_file

_LAST_0_BYTES = re.compile(r"bytes\s*=\s*-0+\s*", re.IGNORECASE)  # malformed for Werkzeug


def send(path: Path, kind: str) -> Response:
    """A video file, or the part of it that the request names."""
    try:
        _settle_range(path.stat().st_size)
        response = send_file(path, mimetype=kind, conditional=True, max_age=3600)
        if response.status_code == 206 and "wsgi.file_wrapper" in request.environ:
            # Waitress sends a wrapped file from its current position, without blocking a thread (PEP 3333); a range
            # that Werkzeug wraps would be sent piecewise by a thread that waits for the client.
            part = path.open("rb")
            part.seek(response.content_range.start or 0)
            response.response.close()  # type: ignore[union-attr]
            response.response = wrap_file(request.environ, part)
        return response
    except OSError:  # removed meanwhile, or not readable
        abort(404)


def _settle_range(size: int) -> None:
    """Adapt the Range header where Werkzeug and RFC 9110 (14.1.2, 14.2) disagree on whether to respond 416.

    Units other than bytes, malformed and multiple ranges, and ranges of methods other than GET are ignored. The last N
    bytes of a shorter file are the whole file, and the last 0 bytes no range at all.
    """
    asked = request.range
    if request.method == "GET" and _LAST_0_BYTES.fullmatch(request.headers.get("Range", "")):
        raise RequestedRangeNotSatisfiable(size)
    if asked is None or asked.units != "bytes" or len(asked.ranges) != 1 or request.method != "GET":
        request.environ.pop("HTTP_RANGE", None)
    elif asked.ranges[0][0] < -size:
        request.environ["HTTP_RANGE"] = "bytes=0-"
