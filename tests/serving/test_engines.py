from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from method.evaluation.corpus import Corpus
from method.evaluation.frame_embeddings import FrameEmbeddings, SelectedEmbeddings
from method.evaluation.ranking import rank
from method.evaluation.scorer import Scorer
from method.runtime.errors import InputError
from method.serving.engines.exact import ExactEngine, best_candidates
from method.serving.engines.rescoring import Videos
from tests.evaluation.corpora import BRANCHES, Encoded, random_encoded, settings_of

CPU = torch.device("cpu")


def halves(encoded: Encoded) -> Corpus:
    """The videos in two collections of other orders, which have others, too."""
    places = [(index % 2, 29 - index) for index in range(30)]
    frames = {}
    for name, own in encoded.frames.items():
        filler = torch.ones(3, own[0].shape[1])
        sources = [[filler] * 30 for _ in range(2)]
        for index, (number, place) in enumerate(places):
            sources[number][place] = own[index]
        collections = [FrameEmbeddings.join([torch.cat(each)], [len(rows) for rows in each]) for each in sources]
        frames[name] = SelectedEmbeddings(collections, places)
    return Corpus(encoded.video_ids, dict(frames))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("corpus_of", [Encoded.corpus, halves])
def test_the_exact_engine_ranks_as_evaluation(
    corpus_of: Callable[[Encoded], Corpus], backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A3PRVR_OPS", backend)
    encoded = random_encoded(videos=30, queries=40, longest=9)
    queries, settings = encoded.queries(), settings_of(0.3, memory_mb=1)
    engine = ExactEngine(corpus_of(encoded), settings, CPU)
    assert list(engine.video_ids) == encoded.video_ids
    right = [encoded.video_ids.index(caption.video_id) for caption in queries.captions]
    rankings = engine.search(queries.vectors, 7, right)
    evaluated = rank(encoded.corpus(), queries, settings)
    assert [ranking.right_rank for ranking in rankings] == evaluated.ranks["fused"].tolist()
    expected, frames = encoded.scores(0.3), encoded.best_frames()
    order = expected["fused"].argsort(descending=True, stable=True)
    for query, ranking in enumerate(rankings):
        assert [found.index for found in ranking.best] == order[query, :7].tolist()
        for found in ranking.best:
            for name, score in found.scores.items():
                assert score == pytest.approx(float(expected[name][query, found.index]), abs=1e-6)
            for name, frame in found.best_frames.items():
                assert frame == frames[name][query][found.index]
    assert [ranking.right_rank for ranking in engine.search(queries.vectors, 1)] == [None] * 40


def test_a_query_has_the_same_result_alone_and_with_others_and_the_scores_of_evaluation_to_the_bit() -> None:
    encoded = random_encoded(videos=20, queries=32, longest=40, width=384)
    corpus, settings = encoded.corpus(), settings_of(0.3)
    engine, scores = ExactEngine(corpus, settings, CPU), Scorer(corpus, settings).scores(encoded.vectors)
    together = engine.search(encoded.vectors, 5)
    for query, ranking in enumerate(together):
        assert engine.search({name: own[query : query + 1] for name, own in encoded.vectors.items()}, 5) == [ranking]
        for found in ranking.best:
            assert found.scores == {name: float(own[query, found.index]) for name, own in scores.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_search_leaves_the_settings_of_the_process_alone(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread may be encoding, and would round differently."""
    encoded = random_encoded(videos=20, queries=3, longest=9)
    encoded.frames = {name: [rows.to(dtype) for rows in own] for name, own in encoded.frames.items()}
    engine = ExactEngine(encoded.corpus(), settings_of(0.3), CPU)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", pytest.fail)
    assert len(engine.search(encoded.vectors, 5)) == 3


def test_equal_videos_are_in_corpus_order_and_count_against_a_right_one() -> None:
    encoded = random_encoded(videos=3, queries=1, longest=5)
    for frames in encoded.frames.values():
        frames[:] = [frames[0]] * 80
    engine = ExactEngine(encoded.corpus(), settings_of(0.3), CPU)
    (ranking,) = engine.search(encoded.vectors, 6, [17])
    assert [found.index for found in ranking.best] == [0, 1, 2, 3, 4, 5]
    assert ranking.right_rank == 80


@pytest.mark.parametrize("count", [1, 5, 30, 99])
def test_every_video_can_be_asked_for(count: int) -> None:
    encoded = random_encoded(videos=30, queries=2, longest=9)
    for ranking in ExactEngine(encoded.corpus(), settings_of(0.3), CPU).search(encoded.vectors, count):
        assert len({found.index for found in ranking.best}) == len(ranking.best) == min(count, 30)
        scores = [found.scores["fused"] for found in ranking.best]
        assert scores == sorted(scores, reverse=True)


def test_without_videos_nothing_is_found() -> None:
    nothing = Corpus([], {name: FrameEmbeddings(torch.empty(0, 4), ()) for name in BRANCHES})
    assert [ranking.best for ranking in ExactEngine(nothing, settings_of(0.3), CPU).search(_vectors(3), 5)] == [[]] * 3


def test_scores_that_are_not_finite_are_refused() -> None:
    encoded = random_encoded(videos=5, queries=1, longest=3)
    encoded.frames["object"][2][0] = torch.nan
    with pytest.raises(InputError, match="the object scores are not finite"):
        ExactEngine(encoded.corpus(), settings_of(0.3), CPU).search(encoded.vectors, 2)


def test_candidates_include_what_rounding_may_have_put_behind() -> None:
    scores_V = torch.tensor([0.5, 0.7 - 3e-6, 0.9, 0.7, 0.6])
    assert best_candidates(scores_V, 2) == [1, 2, 3]
    assert best_candidates(1000 * scores_V, 2) == [1, 2, 3]


def test_many_candidates_are_scored_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = random_encoded(videos=30, queries=1, longest=9)
    videos = Videos(halves(encoded), settings_of(0.3), CPU)
    vectors = {name: own[0] for name, own in encoded.vectors.items()}
    candidates = [28, 3, 0, 12, 11, 10]
    whole = videos.score(vectors, candidates)
    monkeypatch.setattr("method.serving.engines.rescoring._FRAMES", 10)
    parts = list(videos._parts(candidates))
    assert len(parts) > 2
    assert [index for own in parts for index in own] == candidates
    for own, expected in zip(videos.score(vectors, candidates), whole, strict=True):
        for name in expected:
            torch.testing.assert_close(own[name], expected[name], rtol=0, atol=1e-6)


def _vectors(queries: int) -> dict[str, Tensor]:
    return random_encoded(videos=1, queries=queries, longest=1).vectors
