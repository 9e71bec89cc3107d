"""Search a corpus with a sentence or with a caption of the dataset: ranked videos, each with its moment.

Queries are encoded and scored by what evaluation encodes and scores them with.

Letters: V videos, T frames of a timeline.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from method.data.batch import Loader, QueryBatch
from method.data.captions import Caption, group_by_video
from method.data.dataset import FeatureReader, Queries
from method.evaluation.corpus import Corpus, Scorer, encode_queries
from method.evaluation.metrics import broken_score, ranks_of
from method.evaluation.moments import Moment, best_moment, frame_timeline
from method.model.retrieval import RetrievalModel
from method.runtime.errors import InputError
from method.text.encoder import TextEncoder

MAX_CHARACTERS = 500


@dataclass(frozen=True)
class Hit:
    """A video that was found.

    scores: of each branch that is on, and 'fused', by which videos are ranked.
    best_frames: where the frame lies that gave a branch its score: its centre, 0 to 1 of the video.
    timeline: how well each of T frames fits, at equal distances over the video.
    duration: seconds, where known.
    """

    rank: int
    video_id: str
    scores: dict[str, float]
    best_frames: dict[str, float]
    timeline: tuple[float, ...]
    moment: Moment
    duration: float | None


@dataclass(frozen=True)
class Answer:
    """The best videos for a query.

    caption: the query; one that was typed has no id and no video.
    right_rank: rank of the caption's own video as evaluation counts it, where that is in the corpus.
    note: what the user should know about the query.
    seconds: from the query to the answer.
    """

    caption: Caption
    hits: list[Hit]
    right_rank: int | None
    note: str | None
    seconds: float


class Searcher:
    """Answers queries, one at a time whichever thread asks.

    Args:
        model: in evaluation mode, on the device that shall compute.
        corpus: the videos, from an index.
        captions: those of the dataset that can be searched with; they are also shown with the videos found.
        reader: of the captions' own token features.
        make_encoder: loads the text encoder; called when the first sentence comes, and again after it failed.
        durations: seconds of the videos for which they are known.
        fusion_weight: share of the action score.
        memory_mb: memory for scoring, in MiB.
        precision: 'off', 'bf16' or 'fp16', as the corpus was encoded.
    """

    def __init__(
        self,
        model: RetrievalModel,
        corpus: Corpus,
        captions: Sequence[Caption],
        reader: FeatureReader,
        make_encoder: Callable[[], TextEncoder],
        durations: Mapping[str, float],
        fusion_weight: float,
        memory_mb: int,
        precision: str = "off",
    ) -> None:
        self._model, self._reader, self._make_encoder = model, reader, make_encoder
        self._durations, self._fusion_weight, self._precision = durations, fusion_weight, precision
        self._device = next(model.parameters()).device
        self._corpus = corpus.to(self._device)
        self._scorer = Scorer(self._corpus, memory_mb)
        self._place = {video_id: place for place, video_id in enumerate(corpus.video_ids)}
        self._encoder: TextEncoder | None = None
        self._lock = threading.Lock()
        self.captions = {caption.id: caption for caption in captions}
        self.captions_of = group_by_video(captions)
        self.video_ids = corpus.video_ids

    def load_encoder(self) -> None:
        """Load the text encoder now. InputError when that is not possible; captions can be searched with even so."""
        with self._lock:
            self._text_encoder()

    @property
    def has_encoder(self) -> bool:
        """Whether sentences can be searched with by now."""
        return self._encoder is not None

    def search(self, query: str, count: int) -> Answer:
        """Search with what a user typed: a caption id of the dataset, or a sentence."""
        query = query.strip()
        return self.search_caption(query, count) if query in self.captions else self.search_sentence(query, count)

    def search_sentence(self, sentence: str, count: int) -> Answer:
        """The best `count` videos for a sentence.

        InputError for one that is empty, too long or not text, and without encoder.
        """
        if not _is_unicode(sentence):
            raise InputError("a query with a byte that is not UTF-8 text")
        text = clean(sentence)
        if not text:
            raise InputError("an empty query, expected a sentence")
        if len(text) > MAX_CHARACTERS:
            raise InputError(f"a query of {len(text)} characters, expected at most {MAX_CHARACTERS}")
        with self._lock:
            encoder = self._text_encoder()  # loading it is no part of the time that an answer takes
            started = time.perf_counter()
            batch = QueryBatch((Caption("", "", text),), encoder.encode([text]))
            note = None
            if len(batch.words.values) >= encoder.max_tokens:
                note = f"the model reads {encoder.max_tokens} tokens of a query; words behind them hardly count"
            return self._answer(batch, count, started, note)

    def search_caption(self, caption_id: str, count: int) -> Answer:
        """The best `count` videos for a caption by its own token features. InputError for an id that is not known."""
        if caption_id not in self.captions:
            example = next(iter(self.captions), None)
            raise InputError(f"no caption {caption_id!r} in the dataset; ids look like {example!r}")
        with self._lock:
            started = time.perf_counter()
            (batch,) = Loader(Queries(self._reader, [self.captions[caption_id]]), 1, workers=0, pinned=False)
            return self._answer(batch, count, started, None)

    def _text_encoder(self) -> TextEncoder:
        if self._encoder is None:
            self._encoder = self._make_encoder()
        return self._encoder

    @torch.inference_mode()
    def _answer(self, batch: QueryBatch, count: int, started: float, note: str | None) -> Answer:
        (caption,) = batch.captions
        vectors = encode_queries(self._model, [batch], self._device, self._precision).vectors
        scores, frames = self._scorer.scores_and_frames(vectors, self._fusion_weight)
        broken = broken_score(scores)
        if broken is not None:
            raise InputError(f"the {broken} scores are not finite: the weights or features are broken")
        right_rank = None
        if caption.video_id in self._place:
            right = torch.tensor([self._place[caption.video_id]], device=self._device)
            right_rank = int(ranks_of(scores["fused"], right))
        rows = {name: scores_1V[0].cpu() for name, scores_1V in scores.items()}
        best = {name: frames_1V[0].cpu() for name, frames_1V in frames.items()}
        places = rows["fused"].argsort(descending=True, stable=True)[:count].tolist()
        hits = [self._hit(rank, place, rows, best, vectors) for rank, place in enumerate(places, start=1)]
        return Answer(caption, hits, right_rank, note, time.perf_counter() - started)

    def _hit(
        self,
        rank: int,
        place: int,
        scores: Mapping[str, Tensor],
        frames: Mapping[str, Tensor],
        vectors: Mapping[str, Tensor],
    ) -> Hit:
        video_id, keys = self.video_ids[place], self._corpus.video(place)
        timeline_T = frame_timeline(keys, {name: own[0] for name, own in vectors.items()}, self._fusion_weight).cpu()
        return Hit(
            rank,
            video_id,
            {name: float(scores_V[place]) for name, scores_V in scores.items()},
            {name: (int(frames_V[place]) + 0.5) / len(keys[name]) for name, frames_V in frames.items()},
            tuple(timeline_T.tolist()),
            best_moment(timeline_T),
            self._durations.get(video_id),
        )


def _is_unicode(text: str) -> bool:
    """Whether no byte of the command line or of a terminal was left undecoded."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def clean(text: str) -> str:
    r"""A sentence on one line, without control characters and what no encoding can hold.

    >>> clean("  a person\n opens\x1b the\udcff fridge ")
    'a person opens the fridge'
    """
    printable = "".join(letter if letter.isprintable() else " " for letter in text)
    return " ".join(printable.split())
