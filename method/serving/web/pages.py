"""The pages of the search: a search box, ranked videos with their timelines, and the videos themselves."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flask import Response, abort, current_app, redirect, render_template, request, url_for
from werkzeug.exceptions import HTTPException, SecurityError
from werkzeug.wrappers import Response as BaseResponse

from method.data.captions import Caption
from method.evaluation.moments import Moment
from method.runtime.errors import InputError
from method.serving.answer import Answer, Hit
from method.serving.like import Like
from method.serving.output import confidence_text, moment_text, next_offset, span_text, timeline_scale
from method.serving.searcher import MAX_CHARACTERS, Searcher
from method.serving.source import SearcherSource
from method.serving.videos import VideoFolder
from method.serving.web.api import MAX_OFFSET, MAX_RESULTS
from method.serving.web.ranges import send
from method.serving.web.timeline import HEIGHT, WIDTH, Drawing, band, clock, draw

if TYPE_CHECKING:
    from method.serving.web.extracts import Extracts  # imports the package av, which is optional

_STEPS = 10_000  # of a video: the resolution of moments in addresses
_EXAMPLES = 6


@dataclass(frozen=True)
class Row:
    """A result for the template.

    video: URL of its file. kind: suffix of the file. at: where playback starts, in seconds. further: marks of its
    further moments. picture, clip: URLs for its best moment. like: URL of a search for similar ones.
    """

    hit: Hit
    is_right: bool
    span: str
    end_label: str
    drawing: Drawing
    video: str | None
    kind: str
    at: float | None
    captions: list[Caption]
    further: list[Mark]
    picture: str | None
    clip: str | None
    like: str | None


@dataclass(frozen=True)
class Mark:
    """A further moment: its band on the timeline, its span, the start as a fraction of the video and in seconds.

    picture, clip: URLs.
    """

    x: float
    width: float
    span: str
    start: float
    at: float | None
    picture: str | None
    clip: str | None


class Pages:
    """What the server answers.

    Args:
        source: of the searcher that answers the queries.
        results: number of videos to show, unless a request asks for another.
        videos: the files to play.
        extracts: pictures and clips of moments, if there are any.
    """

    def __init__(self, source: SearcherSource, results: int, videos: VideoFolder, extracts: Extracts | None) -> None:
        self._source, self._results, self._videos, self._extracts = source, min(results, MAX_RESULTS), videos, extracts

    def search(self) -> Any:
        """The page of a query.

        `q` is a sentence or a caption id, `id` a caption id, `like` a moment; `top` is the number of videos after the
        best `offset`.
        """
        searcher = self._source.current()
        query, caption_id, moment = request.args.get("q", "").strip(), request.args.get("id"), request.args.get("like")
        if caption_id is None and query in searcher.captions:
            return redirect(url_for("page", id=query))
        if caption_id is None and not query and moment is None:
            return self._render(searcher, examples=_examples(searcher))
        if caption_id is not None and caption_id not in searcher.captions:
            error = f"There is no caption “{caption_id}” in the dataset."
            return self._render(searcher, box=caption_id, error=error), 404
        top, offset = self._number("top", self._results, 1, MAX_RESULTS), self._number("offset", 0, 0, MAX_OFFSET)
        try:
            if caption_id is not None:
                answer = searcher.search_caption(caption_id, top, offset)
            elif query or moment is None:
                answer = searcher.search(query, top, offset)
            else:
                answer = searcher.search_like(moment, top, offset)
        except InputError as error:
            page: dict[str, Any] = {"box": query[:MAX_CHARACTERS], "error": str(error)}
            if not searcher.has_encoder and query:
                page |= {"hint": "Captions of the dataset still work as queries:", "examples": _examples(searcher)}
            return self._render(searcher, **page), 400
        box = (caption_id or query) if answer.like is None else ""
        links = self._links(answer, box, top, len(searcher.video_ids))
        return self._render(searcher, box=box, answer=answer, rows=self._rows(answer, searcher), **links)

    def _number(self, name: str, default: int, least: int, most: int) -> int:
        """A parameter of the request, as near to it as is allowed."""
        return min(max(request.args.get(name, default, type=int), least), most)

    def _links(self, answer: Answer, box: str, top: int, videos: int) -> dict[str, str | None]:
        """The URLs of the pages before and after an answer, if there are any."""
        query: dict[str, Any] = {"id": answer.caption.id} if answer.caption.id else {"q": box}
        if answer.like is not None:
            query = {"like": answer.like}
        if top != self._results:
            query |= {"top": top}

        def link(offset: int | None) -> str | None:
            return None if offset is None else url_for("page", **query, offset=offset or None)

        before = max(0, min(answer.offset, videos) - top) if answer.offset else None
        return {"before": link(before), "after": link(next_offset(answer, videos))}

    def video(self, video_id: str) -> BaseResponse:
        """The file of a video of the dataset."""
        return send(*self._file(video_id))

    def picture(self, video_id: str, at: int) -> BaseResponse:
        """A frame of a video of the dataset, or a placeholder."""
        assert self._extracts is not None
        video, _ = self._file(video_id)
        duration = self._source.current().duration(video_id)
        made = self._extracts.picture(video_id, video, min(at / _STEPS, 1.0), duration)
        response = send(made, "image/jpeg") if made else current_app.send_static_file("no_picture.svg")
        response.cache_control.no_cache = True  # asked for again, because the video may have changed
        return response

    def clip(self, video_id: str, start: int, end: int) -> BaseResponse:
        """A moment of a video of the dataset."""
        assert self._extracts is not None
        video, _ = self._file(video_id)
        duration = self._source.current().duration(video_id)
        if duration is None or not start < end <= _STEPS:
            abort(404)
        made = self._extracts.clip(video_id, video, start / _STEPS * duration, end / _STEPS * duration)
        if made is None:
            abort(404)
        return send(made, "video/mp4")

    def _file(self, video_id: str) -> tuple[Path, str]:
        """The file of a video of the dataset, and its type; 404 without one."""
        found = self._videos.find(video_id) if video_id in self._source.current().captions_of else None
        if found is None:
            abort(404)
        return found

    def failed(self, error: HTTPException) -> Any:
        """The page of an error."""
        if isinstance(error, SecurityError):  # no page for an unknown host
            return Response(f"{error.code}: unknown host name\n", error.code, mimetype="text/plain")
        return (
            self._render(self._source.current(), error=f"{error.code}: {error.name}"),
            error.code,
            error.get_headers(),
        )

    def _render(self, searcher: Searcher, **values: Any) -> str:
        return render_template(
            "page.html",
            **{"box": "", "error": None, "hint": None, "answer": None, "examples": [], **values},
            videos=len(searcher.video_ids),
            confidence_text=confidence_text,
            longest=MAX_CHARACTERS,
            timeline=(WIDTH, HEIGHT),
        )

    def _rows(self, answer: Answer, searcher: Searcher) -> list[Row]:
        scale = timeline_scale(answer.hits)
        rows = []
        for hit in answer.hits:
            found = self._videos.find(hit.video_id)
            picture, clip = self._extracted(hit, hit.moment, found is not None)
            rows.append(
                Row(
                    hit=hit,
                    is_right=hit.video_id == answer.caption.video_id,
                    span=_span(hit, hit.moment) if hit.duration else span_text(hit),
                    end_label=clock(hit.duration) if hit.duration else f"{len(hit.timeline)} frames",
                    drawing=draw(hit, scale),
                    video=url_for("video", video_id=hit.video_id) if found else None,
                    kind=found[0].suffix.lower() if found else "",
                    at=_seconds(hit, hit.moment),
                    captions=searcher.captions_of[hit.video_id],
                    further=[
                        Mark(
                            *band(moment),
                            _span(hit, moment),
                            moment.start,
                            _seconds(hit, moment),
                            *self._extracted(hit, moment, found is not None),
                        )
                        for moment in hit.further
                    ],
                    picture=picture,
                    clip=clip,
                    like=_like(hit, hit.moment) if searcher.can_search_like else None,
                )
            )
        return rows

    def _extracted(self, hit: Hit, moment: Moment, has_file: bool) -> tuple[str | None, str | None]:
        """The URLs of a moment's picture and clip, as far as they can be made."""
        if not has_file or self._extracts is None:
            return None, None
        picture = url_for("picture", video_id=hit.video_id, at=int(moment.peak * _STEPS))
        start, end = int(moment.start * _STEPS), math.ceil(moment.end * _STEPS)
        return picture, url_for("clip", video_id=hit.video_id, start=start, end=end) if hit.duration else None


def _examples(searcher: Searcher) -> list[Caption]:
    """Captions of videos spread over the corpus, one per video."""
    video_ids = searcher.video_ids
    step = max(1, len(video_ids) // _EXAMPLES)
    captions = (searcher.captions_of[video_id] for video_id in video_ids[::step][:_EXAMPLES])
    return [own[0] for own in captions if own]


def _like(hit: Hit, moment: Moment) -> str:
    """The URL of a search with a moment."""
    return url_for("page", like=Like(hit.video_id, moment.start, moment.end))


def _span(hit: Hit, moment: Moment) -> str:
    """The span of a moment as video players show it, or in frames without a duration."""
    if not hit.duration:
        return moment_text(hit, moment)
    return f"{clock(moment.start * hit.duration)}–{clock(moment.end * hit.duration)}"


def _seconds(hit: Hit, moment: Moment) -> float | None:
    """Where a moment starts, if the duration is known."""
    return moment.start * hit.duration if hit.duration else None
