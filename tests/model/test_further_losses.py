"""Losses that are off by default, against loops: what is left out of the negatives, soft targets, and query losses."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from method.data.batch import VideoBatch
from method.data.captions import Caption
from method.model.losses import (
    LOSSES,
    NEGATIVE_QUERIES,
    BatchScores,
    LossSettings,
    cosine_nce_loss,
    nce_loss,
    query_diverse_loss,
    text_structure_loss,
    total,
    triplet_loss,
)
from method.ops.precision import autocast
from method.training.batch_losses import training_losses
from method.training.relations import negative_weights, video_similarity
from method.training.sharded_batch import ShardedBatch
from tests.helpers.reference_model import split_values
from tests.helpers.small_models import lively_model, random_rows, random_streams

LABELS = [0, 0, 1, 1, 1, 2, 3, 3]
OWN = torch.tensor(LABELS)[:, None] == torch.arange(4)
TERMS = (triplet_loss, nce_loss, cosine_nce_loss)


def some_weights() -> Tensor:
    """Of negatives: a few are left out, among them all of caption 5, and others count less."""
    weight_QB = torch.rand(8, 4, generator=torch.Generator().manual_seed(7))
    weight_QB[0, 2] = weight_QB[3, 0] = weight_QB[7, 1] = 0
    weight_QB[5] = 0
    return weight_QB.masked_fill(OWN, 0.0)


def batch(weight_QB: Tensor | None = None, rows: int = 2, **more: Any) -> BatchScores:
    generator = torch.Generator().manual_seed(0)
    cosine_XQB = torch.rand(rows, 8, 4, generator=generator).requires_grad_()
    names = tuple("abc"[:rows])
    return BatchScores(names, cosine_XQB, 3 * cosine_XQB, torch.tensor(LABELS), negative_weight_QB=weight_QB, **more)


def gradient(loss: Tensor, scores: BatchScores) -> Tensor:
    return torch.autograd.grad(loss, scores.cosine_XQB, retain_graph=True)[0]


# Negatives that are left out or count less


def looped_triplet(cosine: Tensor, weight: Tensor, margin: float) -> Tensor:
    to_text, to_video = [], []
    for v in range(4):
        negatives = [q for q in range(8) if weight[q, v] > 0]
        own = torch.stack([cosine[q, v] for q in range(8) if LABELS[q] == v]).mean()
        hardest = max(negatives, key=lambda q: cosine[q, v].item(), default=None)
        hinge = 0 * own if hardest is None else weight[hardest, v] * (margin + cosine[hardest, v] - own).clamp(min=0)
        to_text.append(hinge)
    for q, label in enumerate(LABELS):
        negatives = [v for v in range(4) if weight[q, v] > 0]
        own, hardest = cosine[q, label], max(negatives, key=lambda v: cosine[q, v].item(), default=None)
        hinge = 0 * own if hardest is None else weight[q, hardest] * (margin + cosine[q, hardest] - own).clamp(min=0)
        to_video.append(hinge)
    return torch.stack(to_text).mean() + torch.stack(to_video).mean()


def looped_nce(logits: Tensor, weight: Tensor) -> Tensor:
    to_video, to_text = [], []
    for q, label in enumerate(LABELS):
        own = logits[q, label].exp()
        others = sum((weight[q, v] * logits[q, v].exp() for v in range(4) if v != label), torch.zeros(()))
        to_video.append(-(own / (own + others)).log())
    for v in range(4):
        own = sum((logits[q, v].exp() for q in range(8) if LABELS[q] == v), torch.zeros(()))
        others = sum((weight[q, v] * logits[q, v].exp() for q in range(8) if LABELS[q] != v), torch.zeros(()))
        to_text.append(-(own / (own + others)).log())
    return torch.stack(to_video).mean() + torch.stack(to_text).mean()


def test_weighted_negatives_equal_loops() -> None:
    weight = some_weights()
    scores = batch(weight, hard=True)
    settings = LossSettings(hard_pool_size=1, margin=0.6, nce_temperature=0.5)
    for row, name in enumerate(scores.branches):
        cosine = scores.cosine_XQB[row]
        expected = (
            looped_triplet(cosine, weight, 0.6), looped_nce(3 * cosine, weight), looped_nce(cosine / 0.5, weight)
        )  # fmt: skip
        for term, loss in zip(TERMS, expected, strict=True):
            found = term(scores, settings)[name]
            torch.testing.assert_close(found, loss)
            torch.testing.assert_close(gradient(found, scores), gradient(loss, scores))


@pytest.mark.parametrize("hard", [False, True])
def test_weights_of_one_are_no_weights(hard: bool) -> None:
    """Except for how one of the hardest is drawn, with one candidate."""
    settings = LossSettings(hard_pool_size=1)
    pairs = [batch(weight, hard=hard, generator=torch.Generator().manual_seed(3)) for weight in (None, (~OWN).float())]
    for term in TERMS:
        without, with_weights = (term(scores, settings) for scores in pairs)
        torch.testing.assert_close(without, with_weights)


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("pool", [2, 20])
def test_what_is_no_negative_is_never_drawn(hard: bool, pool: int) -> None:
    weight = (some_weights() > 0).float()
    drawn = torch.zeros(8, 4, dtype=torch.bool)
    torch.manual_seed(0)
    for _ in range(60):
        scores = batch(weight, rows=1, hard=hard)
        drawn |= gradient(triplet_loss(scores, LossSettings(hard_pool_size=pool, margin=9.0))["a"], scores)[0] > 0
    assert not (drawn & (weight == 0)).any()
    if not hard or pool == 20:
        assert torch.equal(drawn, weight > 0)


@pytest.mark.parametrize("hard", [False, True])
def test_without_any_negative_losses_and_gradients_are_zero(hard: bool) -> None:
    scores = batch(torch.zeros(8, 4), hard=hard, teacher_XQB=torch.rand(1, 8, 4))
    for term in TERMS:
        loss = torch.stack(list(term(scores, LossSettings()).values())).sum()
        assert loss.item() == pytest.approx(0, abs=1e-6)
        assert gradient(loss, scores).abs().max() < 1e-6
    soft_loss = cosine_nce_loss(scores, LossSettings(soft_targets=1.0))["a"]
    assert torch.isfinite(soft_loss)  # a video of several captions still has a distribution over them
    assert torch.isfinite(gradient(soft_loss, scores)).all()


# Which negatives these are


TEXTS = ["A man runs.", "a dog barks", "a  MAN runs", "a cat sleeps", "a door opens", "a dog barks!", "new", "newer"]


def sharded_batch() -> ShardedBatch:
    captions = tuple(Caption(str(q), str(LABELS[q]), text) for q, text in enumerate(TEXTS))
    streams = random_streams(lively_model().architecture, [4, 1, 6, 2], [2, 3, 1, 5])
    tokens = random_rows([3, 1, 4, 2, 5, 1, 2, 3], 8)
    return ShardedBatch(VideoBatch(("0", "1", "2", "3"), streams, captions, tokens, torch.tensor(LABELS)), ())


def cosine(left: Tensor, right: Tensor) -> float:
    return float(left @ right / (left.norm() * right.norm()))


@pytest.mark.parametrize("kind", ["equal", "similar"])
@pytest.mark.parametrize("similar_from", [0.0, 0.4])
def test_weights_of_negatives_equal_a_loop(kind: str, similar_from: float) -> None:
    sharded = sharded_batch()
    settings = LossSettings(false_negatives=kind, similar_from=similar_from)
    found = negative_weights(sharded, torch.tensor(LABELS), OWN, settings)
    assert sharded.batch.tokens is not None
    means = torch.stack([rows.mean(0) for rows in split_values(sharded.batch.tokens)])
    centred = means - means.mean(0)
    same = {(0, 2), (2, 0), (1, 5), (5, 1)}
    expected = torch.zeros(8, 4)
    for q in range(8):
        for v in range(4):
            if LABELS[q] == v:
                continue
            expected[q, v] = 1.0
            for other in (other for other in range(8) if LABELS[other] == v):
                above = (cosine(centred[q], centred[other]) - similar_from) / (1 - similar_from)
                weight = 0.0 if (q, other) in same else 1 - min(max(above, 0), 1) * (kind == "similar")
                expected[q, v] = min(expected[q, v].item(), weight)
    torch.testing.assert_close(found, expected)
    assert found[0, 1] == found[2, 0] == found[1, 2] == found[5, 0] == 0
    assert kind == "equal" or ((found > 0) & (found < 1)).any()


def test_one_caption_is_similar_to_none() -> None:
    whole = sharded_batch().batch
    assert whole.tokens is not None
    one = replace(whole, captions=whole.captions[:1], tokens=whole.tokens.split([1, 7])[0], labels_Q=torch.tensor([0]))
    settings = LossSettings(false_negatives="similar")
    found = negative_weights(ShardedBatch(one, ()), one.labels_Q, torch.tensor([[True, False]]), settings)
    assert found.tolist() == [[0.0, 1.0]]


# Soft targets


def test_similarity_of_videos_equals_a_loop() -> None:
    sharded = sharded_batch()
    found = video_similarity(sharded, torch.tensor(LABELS))
    means = [rows.mean(0) for rows in split_values(sharded.batch.streams["object"])]
    expected = torch.tensor([[cosine(means[label], mean) for mean in means] for label in LABELS])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("rows", [1, 2])
def test_soft_targets_equal_a_loop(rows: int) -> None:
    """A teacher with a row for each branch or with one for all."""
    teacher = torch.rand(rows, 8, 4, generator=torch.Generator().manual_seed(5))
    weight = some_weights()
    scores = batch(weight, teacher_XQB=teacher)
    settings = LossSettings(soft_targets=0.3, soft_temperature=0.2, nce_temperature=0.5)
    included = weight.masked_fill(OWN, 1.0)
    for row, name in enumerate(scores.branches):
        logits = included * (scores.cosine_XQB[row] / 0.5).exp()
        targets = included * (teacher[row % rows] / 0.2).exp()
        soft: Any = 0.0
        for q in range(8):
            for v in range(4):
                if included[q, v] > 0:
                    soft -= targets[q, v] / targets[q].sum() * (logits[q, v] / logits[q].sum()).log() / 8
                    soft -= targets[q, v] / targets[:, v].sum() * (logits[q, v] / logits[:, v].sum()).log() / 4
        expected = 0.7 * looped_nce(scores.cosine_XQB[row] / 0.5, weight) + 0.3 * soft
        found = cosine_nce_loss(scores, settings)[name]
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(gradient(found, scores), gradient(expected, scores), atol=1e-5, rtol=1e-4)


# Queries alone


def query_batch(queries_QD: Tensor, labels: list[int], tokens_QD: Tensor | None = None) -> BatchScores:
    scores_XQB = torch.zeros(1, len(labels), max(labels) + 1)
    return BatchScores(
        ("a",), scores_XQB, scores_XQB, torch.tensor(labels), queries={"a": queries_QD}, tokens_QD=tokens_QD
    )


def test_query_diverse_loss_equals_a_loop() -> None:
    queries, reference = (random_rows([8], 5).values.requires_grad_() for _ in range(2))
    settings = LossSettings(diverse_scale=3.0, diverse_margin=0.4)
    losses = []
    for q in range(8):
        inside = torch.ones(())
        for other in range(8):
            if other != q and LABELS[other] == LABELS[q]:
                angle = torch.cosine_similarity(reference[q], reference[other], dim=0)
                inside = inside + (3.0 * (angle + 0.4)).exp()
        losses.append(inside.log())
    expected = torch.stack(losses).mean()
    found = query_diverse_loss(query_batch(queries, LABELS), settings)["a"]
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, queries), torch.autograd.grad(expected, reference))


def test_a_video_with_one_caption_has_no_query_diverse_loss() -> None:
    queries = random_rows([3], 5).values.requires_grad_()
    loss = query_diverse_loss(query_batch(queries, [0, 1, 2]), LossSettings())["a"]
    loss.backward()
    assert loss.item() == 0
    assert queries.grad is not None
    assert not queries.grad.any()


def relative(rows: Tensor) -> dict[tuple[int, int], Tensor]:
    unit = [row / row.norm() for row in rows]
    distances = {(i, j): (unit[i] - unit[j]).norm() for i in range(len(rows)) for j in range(len(rows)) if i != j}
    return {pair: distance / torch.stack(list(distances.values())).mean() for pair, distance in distances.items()}


def test_text_structure_loss_equals_a_loop() -> None:
    queries, reference = ((4 * random_rows([8], 5).values).requires_grad_() for _ in range(2))
    tokens = random_rows([8], 6, seed=1).values
    ours, target = relative(reference), relative(tokens)
    differences = torch.stack([(ours[pair] - target[pair]).abs() for pair in target])
    expected = torch.where(differences < 1, differences**2 / 2, differences - 0.5).mean()
    found = text_structure_loss(query_batch(queries, LABELS, tokens), LossSettings())["a"]
    torch.testing.assert_close(found, expected)
    gradients = torch.autograd.grad(found, queries), torch.autograd.grad(expected, reference)
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_equal_queries_and_few_of_them_keep_text_structure_finite(count: int) -> None:
    queries = torch.ones(count, 5, requires_grad=True)
    loss = text_structure_loss(query_batch(queries, [0] * count, torch.ones(count, 6)), LossSettings())["a"]
    loss.backward()
    assert queries.grad is not None
    assert torch.isfinite(queries.grad).all()
    assert loss.item() == pytest.approx(0, abs=1e-6)


# All together


OF_BRANCHES = ("query_diverse", "text_structure", "optimal_matching")


@pytest.mark.parametrize("precision", ["off", "bf16"])
def test_all_losses_together(precision: str) -> None:
    weights = {name: 0.1 for name in LOSSES if name != NEGATIVE_QUERIES}
    settings = LossSettings(weights=weights, fused="beside", false_negatives="similar", soft_targets=0.5)
    model = lively_model()
    with autocast(torch.device("cpu"), precision):
        terms = training_losses(model, sharded_batch(), settings, True, {}, torch.Generator().manual_seed(0))
    of_scores = [
        f"{name}/{term}" for name in ("action", "object", "fused") for term in ("triplet", "nce", "cosine_nce")
    ]
    of_queries = [f"{name}/{term}" for name in ("action", "object") for term in OF_BRANCHES]
    assert sorted(terms) == sorted(of_scores + of_queries)
    total(terms).backward()
    assert all(math.isfinite(term.item()) for term in terms.values())
    assert all(torch.isfinite(weight.grad).all() for weight in model.parameters() if weight.grad is not None)
