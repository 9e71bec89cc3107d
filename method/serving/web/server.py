"""The web page of the search as a server: its addresses, who may read it, and the headers that protect it.

Flask escapes in templates and serves ranges of files, and most of its dependencies come with torch and tensorboard
anyway. Waitress serves it with threads, so that videos do not block queries.

The page is self-contained: it works without network, and its content security policy forbids anything else.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
from functools import partial
from pathlib import Path

from flask import Flask, Response, request
from waitress.server import create_server
from werkzeug.exceptions import HTTPException, SecurityError

from method.runtime.errors import InputError
from method.serving.source import SearcherSource
from method.serving.videos import VideoFolder
from method.serving.web.api import PREFIX, Api, bad_input, failed
from method.serving.web.pages import Pages
from method.video.files import can_open_videos

log = logging.getLogger(__name__)

# With this many unsent bytes, Waitress blocks a thread until the client reads. It never should: video files are sent
# by the event loop, and pages are small.
_UNSENT_BYTES = 1 << 40
_SECURITY = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "media-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def make_app(
    source: SearcherSource, host: str, results: int, video_dir: Path | None, extracts_dir: Path | None = None
) -> Flask:
    """The page and the API as a WSGI application.

    Args:
        source: of the searcher that answers the queries.
        host: address to serve on. On the loopback interface, the Host header must name it: otherwise any web site could
            read the page by DNS rebinding.
        results: number of videos to show.
        video_dir: folder of the video files, if any.
        extracts_dir: folder to keep pictures and clips of moments in. Without it, without `video_dir` or without the
            package av, the page has none.
    """
    app = Flask(__name__)
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    app.jinja_options = {"trim_blocks": True, "lstrip_blocks": True}
    videos = VideoFolder(video_dir)
    if video_dir is not None:
        found, line = videos.describe(source.current().video_ids)
        log.log(logging.INFO if found else logging.WARNING, "%s", line)
    extracts = None
    if video_dir is not None and extracts_dir is not None and can_open_videos():
        from method.serving.web.extracts import Extracts  # here, because it imports the package av

        extracts = Extracts(extracts_dir)
    pages, api = Pages(source, results, videos, extracts), Api(source, results)
    app.before_request(partial(_refuse_other_hosts, host))
    app.add_url_rule("/", "page", pages.search)
    app.add_url_rule("/video/<path:video_id>", "video", pages.video)
    if extracts is not None:
        app.add_url_rule("/picture/<int:at>/<path:video_id>", "picture", pages.picture)
        app.add_url_rule("/clip/<int:start>/<int:end>/<path:video_id>", "clip", pages.clip)
    for name in ("search", "videos", "health", "version"):
        app.add_url_rule(f"{PREFIX}{name}", f"api_{name}", getattr(api, name))
    app.register_error_handler(InputError, bad_input)  # pages handle theirs
    app.register_error_handler(
        HTTPException, lambda error: failed(error) if request.path.startswith(PREFIX) else pages.failed(error)
    )
    app.after_request(_secure)
    return app


def serve(app: Flask, host: str, port: int) -> None:
    """Serve until interrupted. InputError if the address is not available."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family)
    except OSError as error:
        raise InputError(f"--host {host} --port {port}: cannot listen there ({error.strerror})") from error
    with listening:
        server = create_server(app, sockets=[listening], threads=16, ident=None, max_request_body_size=1 << 16,
            outbuf_high_watermark=_UNSENT_BYTES)  # fmt: skip
        if not _is_loopback(host):
            log.warning("anyone who can reach this machine can use the page and the API (no password)")
        print(f"http://{_in_url(host)}:{listening.getsockname()[1]}/   (Ctrl-C to quit)", flush=True)
        server.run()


def _refuse_other_hosts(host: str) -> None:
    if _is_loopback(host) and not _is_loopback(_host_name(request.host)):
        raise SecurityError


def _secure(response: Response) -> Response:
    response.headers.update(_SECURITY)
    return response


def _host_name(host: str) -> str:
    """The name in a Host header, in lower case, without its port and a final dot.

    >>> _host_name("LocalHost.:8000"), _host_name("[::1]:8000"), _host_name("127.0.0.1")
    ('localhost', '::1', '127.0.0.1')
    """
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    return name.lower().removesuffix(".")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
