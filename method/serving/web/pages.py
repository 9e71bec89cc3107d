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
from method.serving.output import moment_text, span_text, timeline_scale
from method.serving.searcher import MAX_CHARACTERS, Answer, Hit, Searcher
from method.serving.videos import VideoFolder
from method.serving.web.ranges import send
from method.serving.web.timeline import HEIGHT, WIDTH, Drawing, band, clock, draw

if TYPE_CHECKING:
    from method.serving.web.extracts import Extracts  # imports the package av, which is optional

MAX_RESULTS = 200
_STEPS = 10_000  # of a video: the resolution of moments in addresses
_EXAMPLES = 6


@dataclass(frozen=True)
class Row:
    """A result for the template.

    video: URL of its file. kind: suffix of the file. at: where playback starts, in seconds. further: marks of its
    further moments. picture, clip: URLs for its best moment.
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
        searcher: answers the queries.
        results: number of videos to show, unless a request asks for another.
        videos: the files to play.
        extracts: pictures and clips of moments, if there are any.
    """

    def __init__(self, searcher: Searcher, results: int, videos: VideoFolder, extracts: Extracts | None) -> None:
        self._searcher, self._results, self._videos, self._extracts = searcher, results, videos, extracts

    def search(self) -> Any:
        """The page of a query: `q` is a sentence or a caption id, `id` a caption id, `top` the number of videos."""
        searcher = self._searcher
        query, caption_id = request.args.get("q", "").strip(), request.args.get("id")
        if caption_id is None and query in searcher.captions:
            return redirect(url_for("page", id=query))
        if caption_id is None and not query:
            return self._render(examples=self._examples())
        if caption_id is not None and caption_id not in searcher.captions:
            return self._render(box=caption_id, error=f"There is no caption “{caption_id}” in the dataset."), 404
        top = min(max(request.args.get("top", self._results, type=int), 1), MAX_RESULTS)
        try:
            answer = searcher.search(query if caption_id is None else caption_id, top)
        except InputError as error:
            page: dict[str, Any] = {"box": query[:MAX_CHARACTERS], "error": str(error)}
            if not searcher.has_encoder:
                page |= {"hint": "Captions of the dataset still work as queries:", "examples": self._examples()}
            return self._render(**page), 400
        rows = self._rows(answer)
        more = min(len(rows) + 2 * self._results, len(searcher.video_ids), MAX_RESULTS)
        more_or_none = more if more > len(rows) else None
        return self._render(box=caption_id or query, answer=answer, rows=rows, more=more_or_none)

    def video(self, video_id: str) -> BaseResponse:
        """The file of a video of the dataset."""
        return send(*self._file(video_id))

    def picture(self, video_id: str, at: int) -> BaseResponse:
        """A frame of a video of the dataset, or a placeholder."""
        assert self._extracts is not None
        video, _ = self._file(video_id)
        made = self._extracts.picture(video_id, video, min(at / _STEPS, 1.0), self._searcher.duration(video_id))
        response = send(made, "image/jpeg") if made else current_app.send_static_file("no_picture.svg")
        response.cache_control.no_cache = True  # asked for again, because the video may have changed
        return response

    def clip(self, video_id: str, start: int, end: int) -> BaseResponse:
        """A moment of a video of the dataset."""
        assert self._extracts is not None
        video, _ = self._file(video_id)
        duration = self._searcher.duration(video_id)
        if duration is None or not start < end <= _STEPS:
            abort(404)
        made = self._extracts.clip(video_id, video, start / _STEPS * duration, end / _STEPS * duration)
        if made is None:
            abort(404)
        return send(made, "video/mp4")

    def _file(self, video_id: str) -> tuple[Path, str]:
        """The file of a video of the dataset, and its type; 404 without one."""
        found = self._videos.find(video_id) if video_id in self._searcher.captions_of else None
        if found is None:
            abort(404)
        return found

    def failed(self, error: HTTPException) -> Any:
        """The page of an error."""
        if isinstance(error, SecurityError):  # no page for an unknown host
            return Response(f"{error.code}: unknown host name\n", error.code, mimetype="text/plain")
        return self._render(error=f"{error.code}: {error.name}"), error.code, error.get_headers()

    def _render(self, **values: Any) -> str:
        return render_template(
            "page.html",
            **{"box": "", "error": None, "hint": None, "answer": None, "examples": [], **values},
            videos=len(self._searcher.video_ids),
            longest=MAX_CHARACTERS,
            timeline=(WIDTH, HEIGHT),
        )

    def _examples(self) -> list[Caption]:
        """Captions of videos spread over the corpus, one per video."""
        video_ids = self._searcher.video_ids
        step = max(1, len(video_ids) // _EXAMPLES)
        captions = (self._searcher.captions_of[video_id] for video_id in video_ids[::step][:_EXAMPLES])
        return [own[0] for own in captions if own]

    def _rows(self, answer: Answer) -> list[Row]:
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
                    captions=self._searcher.captions_of[hit.video_id],
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


def _span(hit: Hit, moment: Moment) -> str:
    """The span of a moment as video players show it, or in frames without a duration."""
    if not hit.duration:
        return moment_text(hit, moment)
    return f"{clock(moment.start * hit.duration)}–{clock(moment.end * hit.duration)}"


def _seconds(hit: Hit, moment: Moment) -> float | None:
    """Where a moment starts, if the duration is known."""
    return moment.start * hit.duration if hit.duration else None
