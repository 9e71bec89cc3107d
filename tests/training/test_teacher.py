"""Soft targets from the running average of the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from method.config.training_settings import LoopSettings
from method.data.batch import VideoBatch
from method.data.captions import Caption
from method.model.branch_spec import fused_weights
from method.model.contrastive import cosine_nce_loss
from method.model.losses import BatchScores, LossSettings
from method.model.retrieval import RetrievalModel
from method.model.scoring import fuse
from method.training.batch_losses import teacher_scores, training_losses
from method.training.loop import Training
from method.training.optimizer import Schedule
from method.training.sharded_batch import ShardedBatch
from tests.helpers.small_models import averaged, lively_model, random_rows, random_streams

LABELS = [0, 0, 1, 2, 2]
TAUGHT: dict[str, Any] = {"soft_targets": 0.4, "soft_temperature": 0.2, "soft_teacher": "average"}
FUSED = "fused"


def batch() -> VideoBatch:
    captions = tuple(Caption(str(q), str(LABELS[q]), "") for q in range(5))
    streams = random_streams(lively_model().architecture, [4, 1, 6], [2, 3, 5])
    return VideoBatch(("0", "1", "2"), streams, captions, random_rows([3, 1, 4, 2, 5], 8), torch.tensor(LABELS))


def rows_of(model: RetrievalModel, fused: str, fusion_weight: float) -> Mapping[str, torch.Tensor]:
    given = batch()
    assert given.tokens is not None
    keys, queries = model.encode_videos(given.streams), model.encode_queries(given.tokens)
    rows = {name: model.branch(name).score(keys[name], queries[name]).cosine_QB for name in keys}
    if fused == "off":
        return rows
    weights = fused_weights(model.architecture.branches, fusion_weight)
    by_query = model.query_weights
    score = fuse(rows, weights if by_query is None else by_query.by_branch(by_query(queries, weights)))
    return {**(rows if fused == "beside" else {}), FUSED: score}


@pytest.mark.parametrize("fused", ["off", "beside", "instead"])
@pytest.mark.parametrize("changes", [{}, {"query_weights": True}], ids=["fixed weights", "query weights"])
def test_the_targets_are_the_scores_of_the_average(fused: str, changes: dict[str, Any]) -> None:
    """Without dropout and augmentation, in the rows that are trained, and without a gradient."""
    model = lively_model(**changes, dropout=0.0, input_dropout=0.0)
    average = averaged(lively_model(**changes, dropout=0.5, input_dropout=0.5, frame_drop=0.5, token_drop=0.5))
    average.train()
    settings = LossSettings(weights={"cosine_nce": 1.0}, fused=fused, fusion_weight=0.3, **TAUGHT)
    ours = rows_of(model, fused, 0.3)
    with torch.no_grad():
        theirs = rows_of(average.eval(), fused, 0.3)
    average.train()
    sharded = ShardedBatch(batch(), ())
    state = torch.get_rng_state()
    found = teacher_scores(average, sharded, settings)
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(found, torch.stack(list(theirs.values())))
    terms = training_losses(model, ShardedBatch(batch(), ()), settings, False, {}, None, average)

    ours_XQB, labels_Q = torch.stack(list(ours.values())), torch.tensor(LABELS)
    scores = BatchScores(tuple(ours), ours_XQB, ours_XQB, labels_Q, teacher_XQB=found)
    expected = cosine_nce_loss(scores, settings)
    assert list(terms) == [f"{name}/cosine_nce" for name in expected]
    torch.testing.assert_close(list(terms.values()), list(expected.values()))
    sum(terms.values()).backward()  # type: ignore[union-attr]
    assert all(weight.grad is None for weight in average.parameters())
    hard = cosine_nce_loss(scores, LossSettings())
    assert all((expected[name] - hard[name]).abs() > 1e-3 for name in hard)


def test_a_training_is_taught_by_its_own_average() -> None:
    """At first by the initial weights, then by their average with those after each update."""
    losses = LossSettings(weights={"cosine_nce": 1.0}, **TAUGHT)
    settings = LoopSettings(
        epochs=9, early_stop=-1, hard_from_epoch=9, grad_clip=-1.0, amp="off", losses=losses, seed=0, ema=0.9
    )
    schedule = Schedule(peak=0.01, warmup=0, steps=9)
    training = Training(lively_model(dropout=0.0, input_dropout=0.0), settings, schedule, 0, torch.device("cpu"), None)
    taught = []
    for _ in range(3):
        sharded = ShardedBatch(batch(), ())
        with torch.no_grad():
            of_average = training_losses(training.model, sharded, losses, False, {}, None, training.evaluated)
            of_itself = training_losses(training.model, sharded, losses, False, {}, None, training.model)
        assert training.step(batch()) == pytest.approx({name: term.item() for name, term in of_average.items()})
        taught.append(of_itself != of_average)
    assert taught == [False, True, True]
