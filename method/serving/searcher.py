"""Search a corpus with a sentence or with a caption of the dataset: ranked videos, each with its moment.

Queries are encoded and scored by the code of evaluation.

Letters: Q queries, D width.
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
from method.evaluation.metrics import FUSED
from method.evaluation.moments import frame_timeline
from method.evaluation.proposals import best_moments
from method.evaluation.scorer import ScoringSettings
from method.model.retrieval import RetrievalModel
from method.runtime.errors import InputError, shown
from method.runtime.progress import progress_bar
from method.serving.answer import Answer, Hit, clean
from method.serving.batching import Batching
from method.serving.calibration import Confidence, ScoreScale
from method.serving.engines import Found, Ranking, SearchEngine
from method.serving.like import Like, like_vectors, parse
from method.serving.queries import QueryEncoder, SentenceEncoder

MAX_CHARACTERS = 500
_BATCH = 64  # queries scored together, at most
_TOGETHER = 200  # results of each, at most


@dataclass(frozen=True)
class _Page:
    """Which results are wanted: `count` videos after the best `offset`, with at most `moments` moments each."""

    count: int
    offset: int
    moments: int


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
        split: name of the videos. scale: of the scores, by which a calibration is found to fit.
        confidence: judges the first result.
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
        split: str = "test",
        scale: ScoreScale | None = None,
        confidence: Confidence | None = None,
    ) -> None:
        self._encoders = [QueryEncoder(model, reader, make_encoder), *others]
        self._durations, self._settings = durations, settings
        self.moments_per_video, self.split, self.scale = moments_per_video, split, scale
        self.confidence = confidence or Confidence()
        self._engine, self._find = engine, Batching(self._search, _BATCH)
        self.video_ids = engine.video_ids
        self._index_of = {video_id: index for index, video_id in enumerate(self.video_ids)}
        self._lock = threading.Lock()  # text encoders are loaded, and used, by one thread at a time
        self.captions = {caption.id: caption for caption in captions}
        self.captions_of = {**{video_id: [] for video_id in self.video_ids}, **group_by_video(captions)}

    def load_encoder(self) -> None:
        """Load the text encoder now. InputError if that fails; captions of the dataset still work as queries."""
        with self._lock:
            for encoder in self._encoders:
                encoder.load()

    def take_encoders(self, earlier: Searcher) -> None:
        """Use the text encoders that an earlier searcher with the same models has loaded, in turn with it."""
        with earlier._lock:
            self._lock = earlier._lock
            for own, loaded in zip(self._encoders, earlier._encoders, strict=True):
                own.take(loaded)

    @property
    def has_encoder(self) -> bool:
        """Whether the text encoder is loaded."""
        return all(encoder.is_loaded for encoder in self._encoders)

    def search(self, query: str, count: int, offset: int = 0, moments: int | None = None) -> Answer:
        """Search with a caption id of the dataset or a sentence; a note says if it looks like an id but is none.

        Args:
            query: the sentence or the id.
            count: how many videos to find.
            offset: how many better videos to leave out, those of earlier pages.
            moments: how many moments of a video to find at most; None: `moments_per_video`.

        Raises:
            InputError: as `search_sentence`.
        """
        query = query.strip()
        if query in self.captions:
            return self.search_caption(query, count, offset, moments)
        if not looks_like_an_id(query):
            return self.search_sentence(query, count, offset, moments)
        unknown = f"no caption {query!r} in the dataset"
        try:
            answer = self.search_sentence(query, count, offset, moments)
        except InputError as error:
            raise InputError(f"{unknown}, and not found as a sentence: {error}") from error
        note = f"{unknown}, so this is the answer to a sentence"
        return replace(answer, note=_joined(note, self.confidence.note))

    def search_sentence(self, sentence: str, count: int, offset: int = 0, moments: int | None = None) -> Answer:
        """The best `count` videos for a sentence, see `search`.

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
        return self._answer(Caption("", "", text), vectors, self._page(count, offset, moments), started, note)

    def search_caption(self, caption_id: str, count: int, offset: int = 0, moments: int | None = None) -> Answer:
        """The best `count` videos for a caption, by its token features in the dataset. InputError for an unknown id."""
        if caption_id not in self.captions:
            example = next((f"; ids look like {known!r}" for known in self.captions), ", which has no captions")
            raise InputError(f"no caption {caption_id!r} in the dataset{example}")
        caption = self.captions[caption_id]
        started = time.perf_counter()
        with self._lock:
            vectors = self._embed([encoder.caption(caption) for encoder in self._encoders])
        return self._answer(caption, vectors, self._page(count, offset, moments), started, None)

    @property
    def can_search_like(self) -> bool:
        """Whether a moment can be a query: all branches compare keys and queries by their cosine."""
        return not self._settings.heads

    def search_like(self, moment: str, count: int, offset: int = 0, moments: int | None = None) -> Answer:
        """The best `count` videos for a moment of a searched video, VIDEO@START-END, see `method.serving.like`.

        InputError for another form, an unknown video, and a model whose heads do not compare by the cosine.
        """
        if not self.can_search_like:
            names = ", ".join(self._settings.heads)
            raise InputError(f"a moment cannot be a query: the head of {names} does not compare by the cosine")
        like, page = parse(moment, self._durations), self._page(count, offset, moments)
        if like.video_id not in self._index_of:
            raise InputError(f"{shown(moment)}: no searched video has the id {shown(like.video_id)}")
        started = time.perf_counter()
        vectors = like_vectors(self._engine.frames(self._index_of[like.video_id]), like, self._settings.precision)
        return self._answer(Caption("", "", f"moments like {clean(moment)}"), vectors, page, started, None, like)

    @torch.inference_mode()
    def first_results(self, captions: Sequence[Caption]) -> tuple[Tensor, Tensor]:
        """The fused score (Q,) of the first result for captions of searched videos, and whether it is right (Q,).

        A tie counts against the caption, as in evaluation. Not to be called while other threads search. InputError for
        scores that are not finite.
        """
        first, *others = (own.embed(own.captions(captions), self._settings.precision) for own in self._encoders)
        for other in others:
            first = first.joined(other)
        scores, right = [], []
        for start in progress_bar(range(0, len(captions), _BATCH), "scores", "batch"):
            block = slice(start, start + _BATCH)
            targets = [self._index_of[caption.video_id] for caption in captions[block]]
            found = self._engine.search({name: own_QD[block] for name, own_QD in first.vectors.items()}, 1, targets)
            for ranking, target in zip(found, targets, strict=True):
                scores.append(ranking.best[0].scores[FUSED])
                right.append(ranking.best[0].index == target and ranking.right_rank in (1, None))
        return torch.tensor(scores), torch.tensor(right)

    def _page(self, count: int, offset: int, moments: int | None) -> _Page:
        return _Page(count, offset, self.moments_per_video if moments is None else moments)

    def _embed(self, batches: Sequence[QueryBatch]) -> dict[str, Tensor]:
        """Branch -> embedding (D,) of a query that each encoder has encoded."""
        vectors: dict[str, Tensor] = {}
        for encoder, batch in zip(self._encoders, batches, strict=True):
            vectors |= encoder.embed([batch], self._settings.precision).vectors
        return {name: own_1D[0] for name, own_1D in vectors.items()}

    def _search(self, queries: Sequence[_Query]) -> list[Ranking]:
        """Deep pages, for which many videos are scored exactly, are searched alone, so that others need not be."""
        if len(queries) > 1 and any(query.count > _TOGETHER for query in queries):
            few = iter(self._search([query for query in queries if query.count <= _TOGETHER]))
            return [next(few) if query.count <= _TOGETHER else self._search([query])[0] for query in queries]
        if not queries:
            return []
        vectors = {name: torch.stack([query.vectors[name] for query in queries]) for name in queries[0].vectors}
        most = max(query.count for query in queries)
        return self._engine.search(vectors, most, [query.right for query in queries])

    @torch.inference_mode()
    def _answer(
        self,
        caption: Caption,
        vectors: Mapping[str, Tensor],
        page: _Page,
        started: float,
        note: str | None,
        like: Like | None = None,
    ) -> Answer:
        # The first result is always needed, for the confidence.
        count = page.offset + page.count if page.offset < len(self.video_ids) else 1
        ranking = self._find(_Query(vectors, count, self._index_of.get(caption.video_id)))
        confidence, confident = None, None
        if like is None and ranking.best:  # cosines of keys with keys are on another scale
            confidence, confident = self.confidence.of(ranking.best[0].scores[FUSED])
            note = _joined(note, self.confidence.note)
        places = list(enumerate(ranking.best, start=1))[page.offset : page.offset + page.count]
        hits = [self._hit(rank, found, vectors, page.moments) for rank, found in places]
        several, seconds = page.moments > 1, time.perf_counter() - started
        rank = ranking.right_rank
        return Answer(caption, hits, rank, note, seconds, page.offset, several, like, confidence, confident)

    def _hit(self, rank: int, found: Found, vectors: Mapping[str, Tensor], moments: int) -> Hit:
        video_id, frames = self.video_ids[found.index], self._engine.frames(found.index)
        timeline_T = frame_timeline(frames, vectors, self._settings).cpu()
        first, *further = best_moments(timeline_T, moments)
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


def _joined(*notes: str | None) -> str | None:
    return "; ".join(note for note in notes if note) or None


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
