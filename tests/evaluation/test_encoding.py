"""Embeddings do not depend on what is encoded with them, to the bit, so that an index agrees with evaluation."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from method.data.batch import QueryBatch, VideoBatch
from method.data.captions import Caption
from method.data.ragged import Layout, Ragged
from method.evaluation.corpus import encode_corpus, encode_queries
from method.model.retrieval import RetrievalModel
from tests.helpers.small_models import SMALL, lively_model, random_rows

CPU = torch.device("cpu")
LONGEST = 96
MODELS: dict[str, dict[str, Any]] = {
    "valid": {},
    "padded": {"fusion_extent": "padded"},
    "attention fusion": {"fusion": "attention"},
    "both ways": {"query": "double_q"},
    "gaussian": {"attention": "gaussian"},
    "registers": {"registers": 3},
    "clips": {"head": "clips"},
}


@pytest.fixture(params=["highest", "medium"])
def matmul(request: pytest.FixtureRequest) -> Iterator[str]:
    """Both libraries that multiply on a CPU: MKL, and on some processors oneDNN."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    yield request.param
    torch.set_float32_matmul_precision(before)


def model_of(changes: dict[str, Any]) -> RetrievalModel:
    return lively_model(hidden_size=64, max_frames=LONGEST, max_words=30, **changes)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("changes", MODELS.values(), ids=MODELS)
def test_a_video_is_the_same_alone_and_in_a_batch(
    changes: dict[str, Any], backend: str, matmul: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A3PRVR_OPS", backend)
    model, dice = model_of(changes), random.Random(0)
    lengths = [dice.choice([1, 2, 3, 7, 15, 16, 17, 31, 33, 50, LONGEST]) for _ in range(33)]
    streams = {name: random_rows(lengths, spec.width) for name, spec in SMALL.branches.items()}
    alone, *batched = (encode(model, streams, size) for size in (1, 7, 33))
    for batch in batched:
        for name in streams:
            for index in range(len(lengths)):
                assert torch.equal(alone.video(index)[name], batch.video(index)[name])


def encode(model: RetrievalModel, streams: dict[str, Ragged], size: int) -> Any:
    count = len(next(iter(streams.values())))
    sizes = [min(size, count - start) for start in range(0, count, size)]
    parts = {name: rows.split(sizes) for name, rows in streams.items()}
    batches = []
    for number, own in enumerate(sizes):
        names = tuple(f"v{number * size + place}" for place in range(own))
        rows = {name: _as_in_a_batch(split[number]) for name, split in parts.items()}
        batches.append(VideoBatch(names, rows, (), None, torch.empty(0, dtype=torch.long)))
    return encode_corpus(model, batches, CPU)


def _as_in_a_batch(rows: Ragged) -> Ragged:
    """In memory of their own; fusion with extent 'padded' reads as far as in a batch with the longest video."""
    return Ragged(rows.values.clone(), Layout.of(rows.layout.lengths, longest=LONGEST))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("hidden_size", [16, 64, 128])
def test_a_query_is_the_same_alone_and_in_a_batch(
    hidden_size: int, backend: str, matmul: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A3PRVR_OPS", backend)
    model, dice = lively_model(hidden_size=hidden_size, max_words=30), random.Random(0)
    lengths = [dice.randint(1, 30) for _ in range(70)]
    tokens = random_rows(lengths, SMALL.query_width)
    captions = tuple(Caption(f"v{index}#enc#0", f"v{index}", "a") for index in range(70))
    vectors = []
    for size in (1, 3, 33, 70):
        sizes = [min(size, 70 - start) for start in range(0, 70, size)]
        parts = zip(range(0, 70, size), tokens.split(sizes), strict=True)
        batches = [QueryBatch(captions[start : start + size], rows) for start, rows in parts]
        vectors.append(encode_queries(model, batches, CPU).vectors)
    for batched in vectors[1:]:
        for name, own_QD in vectors[0].items():
            assert torch.equal(own_QD, batched[name])
