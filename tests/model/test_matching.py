"""The optimal matching loss, against all assignments of captions to frames."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from torch import Tensor

from method.data.ragged import Layout, Ragged
from method.model.losses import BatchScores, LossSettings, optimal_matching_loss
from tests.helpers.reference_model import split_values
from tests.helpers.small_models import random_rows


def batch(keys: dict[str, Ragged], queries: dict[str, Tensor], labels: list[int]) -> BatchScores:
    unused_XQB = torch.zeros(len(keys), len(labels), max(labels) + 1)
    return BatchScores(tuple(keys), unused_XQB, unused_XQB, torch.tensor(labels), queries=queries, keys=keys)


def trained_rows(lengths: list[int], seed: int) -> Ragged:
    rows = random_rows(lengths, 6, seed=seed)
    return rows.with_values(rows.values.requires_grad_())


def best_pairs(queries_CD: Tensor, frames_LD: Tensor) -> list[Tensor]:
    """The cosines of the best assignment, by trying all of them."""
    few, many = (queries_CD, frames_LD) if len(queries_CD) <= len(frames_LD) else (frames_LD, queries_CD)
    assignments = [
        [torch.cosine_similarity(few[i], many[j], dim=0) for i, j in enumerate(choice)]
        for choice in permutations(range(len(many)), len(few))
    ]
    return max(assignments, key=lambda cosines: sum(cosine.item() for cosine in cosines))


LABELS = [0, 1, 0, 2, 3, 0, 3, 3, 3, 4, 4]  # not sorted by video; video 2 has one caption
FRAMES = {"a": [4, 2, 5, 3, 1], "b": [3, 1, 1, 6, 2]}  # videos 3 and 4 have fewer frames than captions in "a"


def test_equals_trying_all_assignments() -> None:
    keys = {name: trained_rows(lengths, seed) for seed, (name, lengths) in enumerate(FRAMES.items())}
    queries = {name: trained_rows([len(LABELS)], seed).values for seed, name in enumerate(FRAMES, start=5)}
    found = optimal_matching_loss(batch(keys, queries, LABELS), LossSettings())
    assert list(found) == ["a", "b"]
    for name, loss in found.items():
        frames, pairs = split_values(keys[name]), []
        for video in (0, 3, 4):
            own = queries[name][[q for q, label in enumerate(LABELS) if label == video]]
            pairs += best_pairs(own, frames[video])
        expected = 1 - torch.stack(pairs).mean()
        torch.testing.assert_close(loss, expected)
        inputs = (queries[name], keys[name].values)
        torch.testing.assert_close(torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, inputs))


def test_a_caption_leaves_its_best_frame_to_another() -> None:
    """Caption 0 likes both frames about equally, caption 1 only the first: 0.6 + 1 is more than 0.8 + 0."""
    frames = Ragged.of([torch.eye(3)[:2]])
    queries = torch.tensor([[0.8, 0.6, 0.0], [2.0, 0.0, 0.0]])
    loss = optimal_matching_loss(batch({"a": frames}, {"a": queries}, [0, 0]), LossSettings())["a"]
    assert loss.item() == pytest.approx(1 - (0.6 + 1) / 2)


def test_rows_that_are_not_valid_are_never_matched() -> None:
    layout = Layout.of([4, 3], valid=[2, 3])
    values = torch.cat([torch.eye(4)[:2], -torch.eye(4)[2:], torch.eye(4)[:3]]).requires_grad_()
    queries = -torch.eye(4)[2:]
    optimal_matching_loss(batch({"a": Ragged(values, layout)}, {"a": queries}, [0, 0]), LossSettings())["a"].backward()
    assert values.grad is not None
    assert values.grad[:2].any(1).all()
    assert not values.grad[2:].any()


@pytest.mark.parametrize("labels", [[0, 1], [0]])
def test_without_several_captions_of_a_video_loss_and_gradients_are_zero(labels: list[int]) -> None:
    keys, queries = trained_rows([3, 2], 0), trained_rows([len(labels)], 1).values
    loss = optimal_matching_loss(batch({"a": keys}, {"a": queries}, labels), LossSettings())["a"]
    loss.backward()
    assert loss.item() == 0
    for grad in (keys.values.grad, queries.grad):
        assert grad is not None
        assert not grad.any()


def test_a_shard_is_matched_to_its_own_videos() -> None:
    """The process of the last two videos, which sums nothing of others."""
    keys, queries = trained_rows([3, 2], 0), trained_rows([5], 1).values
    unused = torch.zeros(1, 5, 4)
    labels_Q = torch.tensor([0, 2, 2, 3, 3])
    scores = BatchScores(
        ("a",), unused, unused, labels_Q, queries={"a": queries}, keys={"a": keys}, shard=slice(1, 5), first_video=2
    )
    alone = batch({"a": keys}, {"a": queries[1:]}, [0, 0, 1, 1])
    settings = LossSettings()
    torch.testing.assert_close(optimal_matching_loss(scores, settings), optimal_matching_loss(alone, settings))


def test_scores_that_are_not_finite_reach_the_loss() -> None:
    """Where the step reports them."""
    frames, queries = trained_rows([3], 0), torch.full((2, 6), torch.nan)
    loss = optimal_matching_loss(batch({"a": frames}, {"a": queries}, [0, 0]), LossSettings())["a"]
    assert loss.isnan()
