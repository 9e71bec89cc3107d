"""Search a corpus with a sentence or with a caption of the dataset: ranked videos, each with its moment.

Queries are encoded and scored by the code of evaluation.

Letters: V videos, T frames of a timeline.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from method.data.batch import QueryBatch
from method.data.captions import Caption, group_by_video
from method.data.dataset import FeatureReader
from method.evaluation.moments import Moment, frame_timeline
from method.evaluation.proposals import best_moments
from method.evaluation.scorer import ScoringSettings
from method.model.retrieval import RetrievalModel
from method.runtime.errors import InputError
from method.serving.batching import Batching
from method.serving.engines import Found, Ranking, SearchEngine
from method.serving.queries import QueryEncoder, SentenceEncoder

MAX_CHARACTERS = 500
_BATCH = 64  # queries scored together, at most


@dataclass(frozen=True)
class Hit:
    """A video that was found.

    scores: of each branch, and 'fused', by which videos are ranked.
    best_frames: branch -> centre of its best frame, as a fraction 0 to 1 of the video.
    timeline: fused scores of T equal frames of the video.
    duration: in seconds, where known.
    further: more moments of the video, best first.
    """

    rank: int
    video_id: str
    scores: dict[str, float]
    best_frames: dict[str, float]
    timeline: tuple[float, ...]
    moment: Moment
    duration: float | None
    further: tuple[Moment, ...] = ()


@dataclass(frozen=True)
class Answer:
    """The best videos for a query.

    caption: the query; a sentence of the user has no id and no video.
    right_rank: rank of the caption's own video as in evaluation, if it is in the corpus.
    note: a remark on the query for the user.
    seconds: from the query to the answer.
    """

    caption: Caption
    hits: list[Hit]
    right_rank: int | None
    note: str | None
    seconds: float


@dataclass(frozen=True)
class _Query:
    """An encoded query: branch -> vector (D,); how many videos to find, and the index of its own, if searched."""

    vectors: Mapping[str, Tensor]
    count: int
    right: int | None


class Searcher:
    """Answers queries; safe to call from several threads.

    Queries that wait while others are scored are scored together.

    Args:
        model: in evaluation mode, on the device that computes.
        engine: finds the videos; by the branches of all models, if there are others.
        captions: of the dataset; can be used as queries, and are shown with the videos found.
        reader: of the captions' token features; None: captions are encoded as sentences are.
        make_encoder: loads the text encoder; called for the first sentence, and again after a failure.
        durations: seconds of videos, as far as known.
        settings: how to score; `precision` is that of the corpus.
        moments_per_video: how many moments of a video to find at most.
        others: encode queries for further models, whose branches are in the corpus and the settings, too.
    """

    def __init__(
        self,
        model: RetrievalModel,
        engine: SearchEngine,
        captions: Sequence[Caption],
        reader: FeatureReader | None,
        make_encoder: Callable[[], SentenceEncoder],
        durations: Mapping[str, float],
        settings: ScoringSettings,
        moments_per_video: int = 1,
        others: Sequence[QueryEncoder] = (),
    ) -> None:
        self._encoders = [QueryEncoder(model, reader, make_encoder), *others]
        self._durations, self._settings = durations, settings
        self.moments_per_video = moments_per_video
        self._engine, self._find = engine, Batching(self._search, _BATCH)
        self.video_ids = engine.video_ids
        self._index_of = {video_id: index for index, video_id in enumerate(self.video_ids)}
        self._lock = threading.Lock()  # of the encoders
        self.captions = {caption.id: caption for caption in captions}
        self.captions_of = {**{video_id: [] for video_id in self.video_ids}, **group_by_video(captions)}

    def load_encoder(self) -> None:
        """Load the text encoder now. InputError if that fails; captions of the dataset still work as queries."""
        with self._lock:
            for encoder in self._encoders:
                encoder.load()

    @property
    def has_encoder(self) -> bool:
        """Whether the text encoder is loaded."""
        return all(encoder.is_loaded for encoder in self._encoders)

    def search(self, query: str, count: int) -> Answer:
        """Search with a caption id of the dataset or a sentence; a note says if it looks like an id but is none."""
        query = query.strip()
        if query in self.captions:
            return self.search_caption(query, count)
        if not looks_like_an_id(query):
            return self.search_sentence(query, count)
        unknown = f"no caption {query!r} in the dataset"
        try:
            answer = self.search_sentence(query, count)
        except InputError as error:
            raise InputError(f"{unknown}, and not found as a sentence: {error}") from error
        return replace(answer, note=f"{unknown}, so this is the answer to a sentence")

    def search_sentence(self, sentence: str, count: int) -> Answer:
        """The best `count` videos for a sentence.

        InputError if it is empty, too long or not text, or without text encoder.
        """
        if not _is_unicode(sentence):
            raise InputError("a query with a byte that is not UTF-8 text")
        text = clean(sentence)
        if not text:
            raise InputError("an empty query, expected a sentence")
        if len(text) > MAX_CHARACTERS:
            raise InputError(f"a query of {len(text)} characters, expected at most {MAX_CHARACTERS}")
        with self._lock:
            loaded = [encoder.load() for encoder in self._encoders]  # not counted in `seconds`
            started = time.perf_counter()
            vectors = self._embed([encoder.sentence(text) for encoder in self._encoders])
        note = None
        if limits := [own.max_tokens for own in loaded if own.fills(text)]:
            note = f"the model reads the first {min(limits)} tokens of a query; later words hardly count"
        return self._answer(Caption("", "", text), vectors, count, started, note)

    def search_caption(self, caption_id: str, count: int) -> Answer:
        """The best `count` videos for a caption, by its token features in the dataset. InputError for an unknown id."""
        if caption_id not in self.captions:
            example = next((f"; ids look like {known!r}" for known in self.captions), ", which has no captions")
            raise InputError(f"no caption {caption_id!r} in the dataset{example}")
        caption = self.captions[caption_id]
        started = time.perf_counter()
        with self._lock:
            vectors = self._embed([encoder.caption(caption) for encoder in self._encoders])
        return self._answer(caption, vectors, count, started, None)

    def _embed(self, batches: Sequence[QueryBatch]) -> dict[str, Tensor]:
        """Branch -> embedding (D,) of a query that each encoder has encoded."""
        vectors: dict[str, Tensor] = {}
        for encoder, batch in zip(self._encoders, batches, strict=True):
            vectors |= encoder.embed(batch, self._settings.precision)
        return {name: own_1D[0] for name, own_1D in vectors.items()}

    def _search(self, queries: Sequence[_Query]) -> list[Ranking]:
        vectors = {name: torch.stack([query.vectors[name] for query in queries]) for name in queries[0].vectors}
        most = max(query.count for query in queries)
        return self._engine.search(vectors, most, [query.right for query in queries])

    @torch.inference_mode()
    def _answer(
        self, caption: Caption, vectors: Mapping[str, Tensor], count: int, started: float, note: str | None
    ) -> Answer:
        ranking = self._find(_Query(vectors, count, self._index_of.get(caption.video_id)))
        hits = [self._hit(rank, found, vectors) for rank, found in enumerate(ranking.best[:count], start=1)]
        return Answer(caption, hits, ranking.right_rank, note, time.perf_counter() - started)

    def _hit(self, rank: int, found: Found, vectors: Mapping[str, Tensor]) -> Hit:
        video_id, frames = self.video_ids[found.index], self._engine.frames(found.index)
        timeline_T = frame_timeline(frames, vectors, self._settings).cpu()
        first, *further = best_moments(timeline_T, self.moments_per_video)
        return Hit(
            rank,
            video_id,
            found.scores,
            {name: (best + 0.5) / len(frames[name]) for name, best in found.best_frames.items()},
            tuple(timeline_T.tolist()),
            first,
            self._durations.get(video_id),
            tuple(further),
        )

    def duration(self, video_id: str) -> float | None:
        """Seconds of a video, if known."""
        return self._durations.get(video_id)


def looks_like_an_id(query: str) -> bool:
    """Whether a query has the form of a caption id, VIDEOID#enc#K, known or not.

    >>> [looks_like_an_id(query) for query in ("v01#enc#99", "v01#enc", "#cooking", "the track #1")]
    [True, True, False, False]
    """
    return re.fullmatch(r"[^\s#]+#\S+", query) is not None


def _is_unicode(text: str) -> bool:
    """Whether all bytes from the command line or the terminal could be decoded."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def clean(text: str) -> str:
    r"""Collapse white space to single blanks, and remove control characters and lone surrogates.

    >>> clean("  a person\n opens\x1b the\udcff fridge ")
    'a person opens the fridge'
    """
    printable = "".join(letter if letter.isprintable() else " " for letter in text)
    return " ".join(printable.split())
