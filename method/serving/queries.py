"""Queries of a search as the embeddings of one model: a sentence of the user, or a caption of the dataset."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

import torch

from method.data.batch import Loader, QueryBatch
from method.data.captions import Caption
from method.data.dataset import FeatureReader, Queries
from method.data.ragged import Ragged
from method.evaluation.corpus import QuerySet, encode_queries
from method.model.retrieval import RetrievalModel

_BATCH = 64


class SentenceEncoder(Protocol):
    """What makes the token features of a sentence, such as a `TextEncoder`."""

    max_tokens: int

    def encode(self, sentences: Sequence[str]) -> Ragged:
        """The features of sentences in their order."""

    def fills(self, sentence: str) -> bool:
        """Whether a sentence has as many tokens as are read, or more."""


class QueryEncoder:
    """Encodes queries for one model.

    Args:
        model: in evaluation mode, on the device that computes.
        reader: of the captions' features; None: captions are encoded as sentences are.
        make_encoder: loads the text encoder; called for the first sentence, and again after a failure.
    """

    def __init__(
        self, model: RetrievalModel, reader: FeatureReader | None, make_encoder: Callable[[], SentenceEncoder]
    ) -> None:
        self.model, self._reader, self._make_encoder = model, reader, make_encoder
        self._encoder: SentenceEncoder | None = None

    @property
    def is_loaded(self) -> bool:
        """Whether the text encoder is loaded."""
        return self._encoder is not None

    def load(self) -> SentenceEncoder:
        """The text encoder, loaded if necessary. InputError if that fails."""
        if self._encoder is None:
            self._encoder = self._make_encoder()
        return self._encoder

    def take(self, other: QueryEncoder) -> None:
        """Use the text encoder that another one for the same model has loaded."""
        self._encoder = self._encoder or other._encoder

    def sentence(self, text: str) -> QueryBatch:
        """The features of a sentence."""
        return QueryBatch((Caption("", "", text),), self.load().encode([text]))

    def caption(self, caption: Caption) -> QueryBatch:
        """The features of a caption of the dataset, from its file where there is one."""
        (batch,) = self.captions([caption])
        return batch

    def captions(self, captions: Sequence[Caption]) -> Iterator[QueryBatch]:
        """The features of captions of the dataset, in batches; see `caption`."""
        if self._reader is not None:
            loader = Loader(Queries(self._reader, captions), _BATCH, workers=0, pinned=False)
            yield from (batch for batch in loader if isinstance(batch, QueryBatch))
            return
        for start in range(0, len(captions), _BATCH):
            own = tuple(captions[start : start + _BATCH])
            yield QueryBatch(own, self.load().encode([caption.text for caption in own]))

    @torch.inference_mode()
    def embed(self, batches: Iterable[QueryBatch], precision: str) -> QuerySet:
        """The embeddings of queries."""
        return encode_queries(self.model, batches, self.model.device, precision)
