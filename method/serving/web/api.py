"""The JSON API of the server: the answers of `search.py --json`, the list of videos, and the state of the server."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from flask import Response, request
from werkzeug.exceptions import HTTPException, SecurityError

from method import __version__
from method.runtime.errors import InputError, shown
from method.serving.output import SCHEMA, as_json
from method.serving.source import SearcherSource

VIDEOS_SCHEMA = "a3prvr.videos/1"
PREFIX = "/api/"
MAX_RESULTS = 200
MAX_OFFSET = 1_000_000
MAX_MOMENTS = 20
MAX_VIDEOS = 1000
_MAX_ID = 1000  # characters of a moment


class Api:
    """What the server answers to programs.

    Args:
        source: of the searcher.
        results: number of videos of an answer, unless a request asks for another.
    """

    def __init__(self, source: SearcherSource, results: int) -> None:
        self._source, self._results = source, min(results, MAX_RESULTS)

    def search(self) -> Response:
        """Search with `q`, a sentence or a caption id, or with `like`, a moment."""
        given = _parameters({"q", "like", "topk", "offset", "moments"})
        if len({"q", "like"} & given.keys()) != 1:
            raise InputError("expected one of the parameters q and like")
        page = _number(given, "topk", self._results, 1, MAX_RESULTS), _number(given, "offset", 0, 0, MAX_OFFSET)
        searcher = self._source.current()
        moments = _number(given, "moments", min(searcher.moments_per_video, MAX_MOMENTS), 1, MAX_MOMENTS)
        if "like" not in given:
            answer = searcher.search(given["q"], *page, moments)
        elif len(given["like"]) > _MAX_ID:
            raise InputError(f"like of {len(given['like'])} characters, expected at most {_MAX_ID}")
        else:
            answer = searcher.search_like(given["like"], *page, moments)
        return _respond(as_json(answer, searcher.split, len(searcher.video_ids)))

    def videos(self) -> Response:
        """The searched videos in their order, with their durations in seconds."""
        given = _parameters({"count", "offset"})
        count = _number(given, "count", 100, 1, MAX_VIDEOS)
        offset = _number(given, "offset", 0, 0, MAX_OFFSET)
        searcher = self._source.current()
        ids, total = searcher.video_ids[offset : offset + count], len(searcher.video_ids)
        return _respond(
            {
                "schema": VIDEOS_SCHEMA,
                "corpus": {"split": searcher.split, "videos": total},
                "offset": offset,
                "next_offset": offset + len(ids) if ids and offset + len(ids) < total else None,
                "videos": [{"video_id": own, "duration": searcher.duration(own)} for own in ids],
            }
        )

    def health(self) -> Response:
        """Whether queries are answered, and what is known of the searcher."""
        _parameters(set())
        searcher = self._source.current()
        return _respond(
            {
                "status": "ok",
                "corpus": {"split": searcher.split, "videos": len(searcher.video_ids)},
                "sentences": searcher.has_encoder,
                "confidence": searcher.confidence.calibration is not None,
                "reload_error": self._source.error,
            }
        )

    def version(self) -> Response:
        """The version of the program and of what it answers."""
        _parameters(set())
        return _respond({"version": __version__, "schemas": [SCHEMA, VIDEOS_SCHEMA]})


def bad_input(error: InputError) -> Response:
    """The response to a request with a mistake."""
    return _respond({"error": str(error)}, 400)


def failed(error: HTTPException) -> Response:
    """The response to a request that failed."""
    message = "unknown host name" if isinstance(error, SecurityError) else str(error.name)
    response = _respond({"error": message}, error.code or 500)
    response.headers.extend([(name, value) for name, value in error.get_headers() if name in ("Allow", "Retry-After")])
    return response


def _parameters(known: set[str]) -> dict[str, str]:
    """The parameters of the request. InputError for unknown and repeated ones."""
    given = request.args.to_dict(flat=False)
    for name, values in given.items():
        if name not in known:
            expected = f"expected {', '.join(sorted(known))}" if known else "expected none"
            raise InputError(f"parameter {shown(name)}: {expected}")
        if len(values) > 1:
            raise InputError(f"parameter {name}: given {len(values)} times, expected once")
    return {name: values[0] for name, values in given.items()}


def _number(given: Mapping[str, str], name: str, default: int, least: int, most: int) -> int:
    text = given.get(name)
    if text is None:
        return default
    if not re.fullmatch(r"[0-9]{1,10}", text) or not least <= int(text) <= most:
        raise InputError(f"{name}={shown(text)}: expected a whole number from {least} to {most}")
    return int(text)


def _respond(value: Mapping[str, Any], status: int = 200) -> Response:
    response = Response(json.dumps(value, allow_nan=False) + "\n", status, mimetype="application/json")
    response.cache_control.no_store = True
    return response
