"""Ranks and recall against the published figures and a loop."""

from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from method.evaluation.metrics import RECALL_AT, all_finite, non_finite_score, ranks_of, retrieval_metrics
from method.model.scoring import fuse
from tests.helpers import reference_model
from tests.helpers.golden_case import draw
from tests.helpers.paths import GOLDEN


def test_golden_ranks_and_metrics() -> None:
    with np.load(GOLDEN / "metrics.npz") as file:
        golden = dict(file)
    scores = draw("metrics/scores", (300, 150))
    scores[np.arange(300), golden["gt"]] += 1.5
    ranks = ranks_of(torch.from_numpy(scores), torch.from_numpy(golden["gt"])).numpy()
    np.testing.assert_array_equal(ranks, golden["ranks"])
    ours = retrieval_metrics(ranks)
    for name in ("r1", "r5", "r10", "r100", "medr", "meanr", "map"):
        assert ours[name] == pytest.approx(golden[name].item(), rel=1e-14), name
    assert ours["sumr"] == pytest.approx(sum(golden[name].item() for name in ("r1", "r5", "r10", "r100")), rel=1e-14)


@given(st.lists(st.lists(st.integers(-3, 3), min_size=5, max_size=5), min_size=1, max_size=20), st.randoms())
@settings(deadline=None, max_examples=100)
def test_ranks_equal_a_loop_with_many_ties(rows: list[list[int]], random: Random) -> None:
    scores = torch.tensor(rows, dtype=torch.float32)
    right = [random.randrange(5) for _ in rows]
    expected = [reference_model.rank_of(row, video) for row, video in zip(scores, right, strict=True)]
    assert ranks_of(scores, torch.tensor(right)).tolist() == expected


def test_constant_scores_give_the_last_rank() -> None:
    ranks = ranks_of(torch.zeros(4, 120), torch.tensor([0, 5, 119, 60])).numpy()
    assert ranks.tolist() == [120] * 4
    metrics = retrieval_metrics(ranks)
    assert (metrics["sumr"], metrics["medr"], metrics["meanr"]) == (0.0, 120.0, 120.0)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=50))
@settings(deadline=None, max_examples=100)
def test_metrics_equal_their_definitions(ranks: list[int]) -> None:
    metrics = retrieval_metrics(np.array(ranks))
    for k in RECALL_AT:
        assert metrics[f"r{k}"] == pytest.approx(100 * sum(rank <= k for rank in ranks) / len(ranks))
    assert metrics["sumr"] == pytest.approx(sum(metrics[f"r{k}"] for k in RECALL_AT))
    ordered = sorted(ranks)
    assert metrics["medr"] == (ordered[(len(ranks) - 1) // 2] + ordered[len(ranks) // 2]) / 2
    assert metrics["meanr"] == pytest.approx(sum(ranks) / len(ranks))
    assert metrics["map"] == pytest.approx(sum(1 / rank for rank in ranks) / len(ranks))
    assert all(type(value) is float for value in metrics.values())


def test_no_captions() -> None:
    with pytest.raises(ValueError, match="no ranks"):
        retrieval_metrics(np.array([], dtype=np.int64))


def test_scores_that_are_not_finite() -> None:
    assert all_finite(torch.ones(2, 2))
    for bad in (torch.nan, torch.inf, -torch.inf):
        assert not all_finite(torch.tensor([[1.0, bad]]))
    assert not all_finite(torch.tensor([[torch.inf, -torch.inf]]))


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ["action", "object"])
def test_the_branch_with_non_finite_scores_is_named_whatever_its_weight(name: str, bad: float, weight: float) -> None:
    scores = {"action": torch.rand(3, 40), "object": torch.rand(3, 40)}
    assert non_finite_score({**scores, "fused": fuse(scores, {"action": weight, "object": 1 - weight})}) is None
    scores[name][1, 37] = bad
    assert non_finite_score({**scores, "fused": fuse(scores, {"action": weight, "object": 1 - weight})}) == name
