"""The web page of the search: a search box, ranked videos with their timelines, and the videos themselves.

Flask escapes in templates and serves ranges of files, and most of its dependencies come with torch and tensorboard
anyway. Waitress serves it with threads, so that videos do not block queries.

The page is self-contained: it works without network, and its content security policy forbids anything else.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flask import Flask, Response, abort, redirect, render_template, request, send_file, url_for
from waitress.server import create_server
from werkzeug.exceptions import HTTPException, SecurityError
from werkzeug.wrappers import Response as BaseResponse
from werkzeug.wsgi import wrap_file

from method.data.captions import Caption
from method.evaluation.moments import Moment
from method.runtime.errors import InputError
from method.serving.output import moment_text, span_text, timeline_scale
from method.serving.searcher import MAX_CHARACTERS, Answer, Hit, Searcher
from method.serving.web.timeline import HEIGHT, WIDTH, Drawing, band, clock, draw
from method.serving.web.videos import VideoFolder

log = logging.getLogger(__name__)

MAX_RESULTS = 200
_EXAMPLES = 6
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


@dataclass(frozen=True)
class Row:
    """A result for the template.

    video: URL of its file. at: where playback starts, in seconds. further: marks of its further moments.
    """

    hit: Hit
    is_right: bool
    span: str
    end_label: str
    drawing: Drawing
    video: str | None
    at: float | None
    captions: list[Caption]
    further: list[Mark]


@dataclass(frozen=True)
class Mark:
    """A further moment: its band on the timeline, its span, the start as a fraction of the video and in seconds."""

    x: float
    width: float
    span: str
    start: float
    at: float | None


def make_app(searcher: Searcher, host: str, results: int, video_dir: Path | None) -> Flask:
    """The page as a WSGI application.

    Args:
        searcher: answers the queries.
        host: address to serve on. On the loopback interface, the Host header must name it: otherwise any web site could
            read the page by DNS rebinding.
        results: number of videos to show.
        video_dir: folder of the video files, if any.
    """
    app = Flask(__name__)
    app.jinja_options = {"trim_blocks": True, "lstrip_blocks": True}
    videos = VideoFolder(video_dir)
    if video_dir is not None:
        found, line = videos.describe(searcher.video_ids)
        log.log(logging.INFO if found else logging.WARNING, "%s", line)

    @app.before_request
    def refuse_other_hosts() -> None:
        if _is_loopback(host) and not _is_loopback(_host_name(request.host)):
            raise SecurityError

    @app.get("/")
    def page() -> Any:
        query, caption_id = request.args.get("q", "").strip(), request.args.get("id")
        top = min(max(request.args.get("top", results, type=int), 1), MAX_RESULTS)
        if caption_id is None and query in searcher.captions:
            return redirect(url_for("page", id=query))
        if caption_id is None and not query:
            return _render(searcher, examples=_examples(searcher))
        if caption_id is not None and caption_id not in searcher.captions:
            return _render(searcher, box=caption_id, error=f"There is no caption “{caption_id}” in the dataset."), 404
        try:
            answer = searcher.search(query if caption_id is None else caption_id, top)
        except InputError as error:
            hint = None if searcher.has_encoder else "Captions of the dataset still work as queries:"
            return _render(searcher, box=query[:MAX_CHARACTERS], error=str(error), hint=hint,
                examples=_examples(searcher) if hint else []), 400  # fmt: skip
        rows = _rows(answer, searcher, videos)
        more = min(len(rows) + 2 * results, len(searcher.video_ids), MAX_RESULTS)
        return _render(
            searcher, box=caption_id or query, answer=answer, rows=rows, more=more if more > len(rows) else None
        )

    @app.get("/video/<path:video_id>")
    def video(video_id: str) -> BaseResponse:
        found = videos.find(video_id) if video_id in searcher.captions_of else None
        if found is None:
            abort(404)
        return _send(*found)

    @app.errorhandler(HTTPException)
    def failed(error: HTTPException) -> Any:
        if isinstance(error, SecurityError):  # no page for an unknown host
            return Response(f"{error.code}: unknown host name\n", error.code,
                mimetype="text/plain")  # fmt: skip
        return _render(searcher, error=f"{error.code}: {error.name}"), error.code, error.get_headers()

    @app.after_request
    def secure(response: BaseResponse) -> BaseResponse:
        response.headers.update(_SECURITY)
        return response

    return app


def serve(app: Flask, host: str, port: int) -> None:
    """Serve until interrupted. InputError if the address is not available."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family)
    except OSError as error:
        raise InputError(f"--host {host} --port {port}: cannot listen there ({error.strerror})") from error
    with listening:
        server = create_server(app, sockets=[listening], threads=8, ident=None, max_request_body_size=1 << 16,
            outbuf_high_watermark=_UNSENT_BYTES)  # fmt: skip
        if not _is_loopback(host):
            log.warning("anyone who can reach this machine can use the page (no password)")
        print(f"http://{_in_url(host)}:{listening.getsockname()[1]}/   (Ctrl-C to quit)", flush=True)
        server.run()


def _render(searcher: Searcher, **values: Any) -> str:
    return render_template(
        "page.html",
        **{"box": "", "error": None, "hint": None, "answer": None, "examples": [], **values},
        videos=len(searcher.video_ids),
        longest=MAX_CHARACTERS,
        timeline=(WIDTH, HEIGHT),
    )


def _examples(searcher: Searcher) -> list[Caption]:
    """Captions of videos spread over the corpus, one per video."""
    step = max(1, len(searcher.video_ids) // _EXAMPLES)
    captions = (searcher.captions_of[video_id] for video_id in searcher.video_ids[::step][:_EXAMPLES])
    return [own[0] for own in captions if own]


def _rows(answer: Answer, searcher: Searcher, videos: VideoFolder) -> list[Row]:
    scale = timeline_scale(answer.hits)
    rows = []
    for hit in answer.hits:
        rows.append(
            Row(
                hit=hit,
                is_right=hit.video_id == answer.caption.video_id,
                span=_span(hit, hit.moment) if hit.duration else span_text(hit),
                end_label=clock(hit.duration) if hit.duration else f"{len(hit.timeline)} frames",
                drawing=draw(hit, scale),
                video=url_for("video", video_id=hit.video_id) if videos.find(hit.video_id) else None,
                at=_seconds(hit, hit.moment),
                captions=searcher.captions_of[hit.video_id],
                further=[
                    Mark(*band(moment), _span(hit, moment), moment.start, _seconds(hit, moment))
                    for moment in hit.further
                ],
            )
        )
    return rows


def _span(hit: Hit, moment: Moment) -> str:
    """The span of a moment as video players show it, or in frames without a duration."""
    if not hit.duration:
        return moment_text(hit, moment)
    return f"{clock(moment.start * hit.duration)}–{clock(moment.end * hit.duration)}"


def _seconds(hit: Hit, moment: Moment) -> float | None:
    """Where a moment starts, if the duration is known."""
    return moment.start * hit.duration if hit.duration else None


def _send(path: Path, kind: str) -> BaseResponse:
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
    """Adapt the Range header where Werkzeug would respond 416 but RFC 9110 (14.1.2, 14.2) would not.

    Units other than bytes, malformed and multiple ranges, and ranges of methods other than GET are ignored. The last N
    bytes of a shorter file are the whole file.
    """
    asked = request.range
    if asked is None or asked.units != "bytes" or len(asked.ranges) != 1 or request.method != "GET":
        request.environ.pop("HTTP_RANGE", None)
    elif asked.ranges[0][0] < -size:
        request.environ["HTTP_RANGE"] = "bytes=0-"


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
