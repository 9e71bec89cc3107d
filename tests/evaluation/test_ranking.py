"""Whole evaluations against the naive implementation, stored scores, and errors."""

from pathlib import Path
from tempfile import gettempdir
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from method.data.batch import QueryBatch, VideoBatch
from method.data.captions import Caption
from method.data.preprocessing import normalize_rows
from method.data.ragged import Ragged
from method.evaluation import scorer as scorer_module
from method.evaluation.corpus import Corpus
from method.evaluation.metrics import retrieval_metrics
from method.evaluation.ranking import Evaluation, evaluate, rank
from method.model.retrieval import RetrievalModel
from method.runtime.errors import InputError
from tests.evaluation.corpora import random_encoded, settings_of
from tests.helpers import reference_model
from tests.helpers.small_models import lively_model, naive_copy

CPU = torch.device("cpu")


class VideoItem(NamedTuple):
    video_id: str
    streams: dict[str, torch.Tensor]


class QueryItem(NamedTuple):
    caption: Caption
    query: torch.Tensor


def join_videos(items: list[VideoItem]) -> VideoBatch:
    streams = {branch: Ragged.of([item.streams[branch] for item in items]) for branch in items[0].streams}
    return VideoBatch(tuple(item.video_id for item in items), streams, (), None, torch.empty(0, dtype=torch.long))


def join_queries(items: list[QueryItem]) -> QueryBatch:
    return QueryBatch(tuple(item.caption for item in items), Ragged.of([item.query for item in items]))


class Split:
    """7 videos with 1 to 3 captions each."""

    def __init__(self, model: RetrievalModel, videos: int = 7) -> None:
        generator = torch.Generator().manual_seed(0)
        a = model.architecture

        def rows(count: int, width: int) -> torch.Tensor:
            return normalize_rows(torch.randn(count, width, generator=generator))

        self.videos: list[VideoItem] = []
        self.queries: list[QueryItem] = []
        for v in range(videos):
            lengths = {"action": 1 + 5 * v % 13, "object": 1 + 4 * v % 9}
            streams = {branch: rows(lengths[branch], width) for branch, (_, width) in a.streams.items()}
            self.videos.append(VideoItem(f"v{v}", streams))
            for k in range(1 + v % 3):
                self.queries.append(QueryItem(Caption(f"v{v}#{k}", f"v{v}", "x"), rows(1 + (v + k) % 6, a.query_width)))

    def video_batches(self, size: int) -> list[VideoBatch]:
        return [join_videos(self.videos[i : i + size]) for i in range(0, len(self.videos), size)]

    def query_batches(self, size: int) -> list[QueryBatch]:
        return [join_queries(self.queries[i : i + size]) for i in range(0, len(self.queries), size)]

    def evaluate(self, model: RetrievalModel, weight: float = 0.5, videos: int = 3, queries: int = 4) -> Evaluation:
        batches = self.video_batches(videos), self.query_batches(queries)
        return evaluate(
            model, *batches, CPU, settings_of(weight, branches=model.architecture.branches), Path(gettempdir())
        )


def naive_scores(model: RetrievalModel, split: Split, weight: float, video_batch: int) -> dict[str, torch.Tensor]:
    """Every caption against every video by the naive implementation; videos are padded with those of their batch."""
    naive = naive_copy(model)
    tokens, mask = reference_model.pad([item.query for item in split.queries])
    scores: dict[str, list[torch.Tensor]] = {"action": [], "object": []}
    with torch.no_grad():
        for batch in split.video_batches(video_batch):
            keys = naive.encode_videos(batch.streams["action"], batch.streams["object"])
            for name, suffix in (("action", ""), ("object", "_phrase")):
                scores[name].append(reference_model.scores(*keys[name], naive.encode_queries(suffix, tokens, mask))[0])
    both = {name: torch.cat(parts, 1) for name, parts in scores.items()}
    return {**both, "fused": weight * both["action"] + (1 - weight) * both["object"]}


# Ranking what is encoded


@pytest.mark.parametrize("branches", [("audio",), ("action", "object"), ("object", "audio"), ("a", "b", "c", "d", "e")])
def test_ranks_and_scores_equal_a_loop(
    branches: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = random_encoded(40, 60, 20, branches=branches)
    corpus, queries, expected = encoded.corpus(), encoded.queries(), encoded.scores(0.3)
    for memory_mb, block in ((512, 1024), (1, 7)):
        monkeypatch.setattr(scorer_module, "_MAX_QUERY_BLOCK", block)
        evaluation = rank(corpus, queries, settings_of(0.3, memory_mb, branches=branches), tmp_path)
        assert evaluation.scores is not None
        assert list(evaluation.scores) == list(evaluation.metrics) == [*branches, "fused"]
        for name, scores in evaluation.scores.items():
            np.testing.assert_allclose(scores, expected[name], atol=1e-6)
            right = [index % 40 for index in range(60)]
            ranks = [
                reference_model.rank_of(torch.tensor(row), video) for row, video in zip(scores, right, strict=True)
            ]
            assert evaluation.ranks[name].tolist() == ranks
    assert sum(settings_of(0.3, branches=branches).weights.values()) == pytest.approx(1)
    assert rank(corpus, queries, settings_of(0.3, branches=branches)).scores is None


# Whole evaluations


@pytest.mark.parametrize(("sizes", "weight"), [((1, 1), 0.0), ((3, 4), 0.3), ((7, 50), 1.0)])
def test_evaluation_equals_the_naive_implementation(sizes: tuple[int, int], weight: float) -> None:
    model = lively_model()
    split = Split(model)
    evaluation = split.evaluate(model, weight, *sizes)
    expected = naive_scores(model, split, weight, 1)
    assert evaluation.scores is not None
    assert set(evaluation.scores) == set(evaluation.metrics) == {"action", "object", "fused"}
    assert evaluation.video_ids == [item.video_id for item in split.videos]
    assert evaluation.caption_ids == [item.caption.id for item in split.queries]
    for name, scores in evaluation.scores.items():
        assert scores.dtype == np.float32
        np.testing.assert_allclose(scores, expected[name], atol=2e-5)
        right = [int(item.caption.video_id[1:]) for item in split.queries]
        ranks = [reference_model.rank_of(torch.tensor(row), video) for row, video in zip(scores, right, strict=True)]
        assert evaluation.ranks[name].tolist() == ranks
        assert evaluation.metrics[name] == retrieval_metrics(np.array(ranks))


@pytest.mark.parametrize("size", [1, 3, 7])
@pytest.mark.parametrize("query", ["i3d_q", "clip_q", "double_q"])
def test_published_evaluation_equals_the_naive_implementation_on_the_same_batches(query: Any, size: int) -> None:
    model = lively_model(fusion_extent="padded", query=query)
    split = Split(model)
    evaluation = split.evaluate(model, 0.5, videos=size)
    expected = naive_scores(model, split, 0.5, size)
    assert evaluation.scores is not None
    for name, scores in evaluation.scores.items():
        np.testing.assert_allclose(scores, expected[name], atol=2e-5)


def test_the_mode_of_the_model_is_restored_and_no_gradients_are_kept() -> None:
    model = lively_model().train()
    split = Split(model)
    first, second = split.evaluate(model), split.evaluate(model)
    assert model.training
    assert first.scores is not None
    assert second.scores is not None
    np.testing.assert_array_equal(first.scores["fused"], second.scores["fused"])
    assert all(weight.grad is None for weight in model.parameters())
    with pytest.raises(InputError):
        evaluate(model, split.video_batches(3)[1:], split.query_batches(4), CPU, settings_of(0.5))
    assert model.training


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_close_with_float32_scores(precision: str, tmp_path: Path) -> None:
    model = lively_model()
    split = Split(model, videos=12)
    batches = split.video_batches(3), split.query_batches(4)
    exact, half = (evaluate(model, *batches, CPU, settings_of(0.3, 64, own), tmp_path) for own in ("off", precision))
    assert exact.scores is not None
    assert half.scores is not None
    for name, scores in half.scores.items():
        assert scores.dtype == np.float32
        assert 0 < np.abs(scores - exact.scores[name]).max() < 0.05
        ties = scores.size - len(np.unique(scores)) - (exact.scores[name].size - len(np.unique(exact.scores[name])))
        assert ties < 0.01 * scores.size  # a tie counts against the caption
    for name, keys in half.corpus.frames.items():
        assert keys.values.element_size() == 2
        assert half.queries.vectors[name].dtype == torch.float32
        assert keys.lengths == exact.corpus.frames[name].lengths


# What is refused


def test_a_caption_without_its_video() -> None:
    model = lively_model()
    split = Split(model)
    split.videos.pop(4)
    with pytest.raises(InputError, match="caption 'v4#0': its video is not among the 6 evaluated videos"):
        split.evaluate(model)


def test_repeated_videos_and_no_captions() -> None:
    encoded = random_encoded(3, 2, 4)
    corpus = encoded.corpus()
    twice = Corpus([corpus.video_ids[0], *corpus.video_ids[:2]], corpus.frames)
    with pytest.raises(InputError, match=f"{corpus.video_ids[0]!r} is among the evaluated videos more than once"):
        rank(twice, encoded.queries(), settings_of(0.5))
    with pytest.raises(InputError, match="no captions to evaluate"):
        rank(corpus, random_encoded(3, 0, 4).queries(), settings_of(0.5))


@pytest.mark.parametrize(("weight", "branch", "value"), [
    ("branches.action.key.weight", "action", torch.nan), ("branches.object.pooling.weight.weight", "object", torch.inf),
])  # fmt: skip
def test_broken_weights(weight: str, branch: str, value: float) -> None:
    model = lively_model()
    with torch.no_grad():
        model.get_parameter(weight).fill_(value)
    with pytest.raises(InputError, match=f"the {branch} scores of caption 'v0#0' .* are not finite"):
        Split(model).evaluate(model)
