"""Weights of the branches that depend on the query."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from method.evaluation.scorer import ScoringSettings
from method.model.branch_spec import BranchSpec, fused_weights
from method.model.losses import LossSettings
from method.model.query_weights import QueryWeights
from method.model.retrieval import RetrievalModel
from method.model.scoring import fuse
from method.training.batch_losses import training_losses
from tests.helpers.small_models import SMALL, changed, lively_model, random_rows, random_streams, whole_batch

FIXED = {"action": 0.2, "object": 0.3, "audio": 0.5}


def test_weights_are_those_of_the_formula() -> None:
    torch.manual_seed(0)
    layer, vectors = QueryWeights(list(FIXED), 4), {name: torch.randn(5, 4) for name in FIXED}
    found = layer(vectors, FIXED)
    for q in range(5):
        logits_X = layer.linear(torch.cat([F.normalize(own[q], dim=0) for own in vectors.values()]))
        expected_X = torch.tensor(list(FIXED.values())) * logits_X.exp()
        torch.testing.assert_close(found[q], expected_X / expected_X.sum())
        torch.testing.assert_close(layer({name: own[q] for name, own in vectors.items()}, FIXED), found[q])
    halved = {name: weight / 2 for name, weight in FIXED.items()}
    torch.testing.assert_close(layer(vectors, halved), found / 2)
    assert not layer(vectors, dict.fromkeys(FIXED, 0.0)).any()


def test_the_fused_score_begins_with_the_fixed_weights_and_is_then_that_of_each_query() -> None:
    scores = {name: torch.randn(5, 7) for name in FIXED}
    vectors = {name: torch.randn(5, 4) for name in FIXED}
    layer = QueryWeights(list(FIXED), 4)
    with torch.no_grad():
        varied = ScoringSettings(FIXED, query_weights=layer).fuse(scores, vectors)
        weights = layer(vectors, FIXED)
    expected = sum(own * weights[:, x, None] for x, own in enumerate(scores.values()))
    torch.testing.assert_close(varied, expected)
    layer.reset_parameters()
    torch.testing.assert_close(ScoringSettings(FIXED, query_weights=layer).fuse(scores, vectors), fuse(scores, FIXED))
    beside = ScoringSettings(FIXED, query_weights=layer).with_branch("zero_shot", 0.4)
    more = {**scores, "zero_shot": torch.randn(5, 7)}
    expected = 0.6 * fuse(scores, FIXED) + 0.4 * more["zero_shot"]
    torch.testing.assert_close(beside.fuse(more, vectors | {"zero_shot": torch.randn(5, 4)}), expected)


@pytest.mark.parametrize("fused", ["beside", "instead"])
def test_the_fused_loss_trains_the_weights(fused: str) -> None:
    model = RetrievalModel(changed(SMALL, query_weights=True, fusion="none", temperatures=())).train()
    assert model.query_weights is not None
    assert not model.query_weights.linear.weight.any()
    streams, tokens = random_streams(model.architecture, [5, 3, 9], [4, 2, 6]), random_rows([3, 5, 2, 4], 8)
    sharded = whole_batch(streams, tokens, torch.tensor([0, 1, 1, 2]), {})
    settings = LossSettings(fused=fused, fusion_weight=0.3, weights={"triplet": 1.0})
    terms = training_losses(model, sharded, settings, False, {}, torch.Generator().manual_seed(0))
    terms["fused/triplet"].backward()
    for weight in model.query_weights.parameters():
        assert weight.grad is not None
        assert weight.grad.any()


def test_fixed_weights_have_no_layer() -> None:
    model = lively_model(branches={"a": BranchSpec("a", 3), "b": BranchSpec("b", 3)}, fusion="none", temperatures=())
    assert model.query_weights is None
    assert fused_weights(model.architecture.branches, 0.5) == {"a": 0.5, "b": 0.5}
