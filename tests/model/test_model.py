"""The model against its naive implementation, and invariances of its results."""

from typing import Any

import pytest
import torch

from method.data.edits import EditedQueries
from method.data.ragged import Ragged
from method.model.losses import LossSettings, total
from method.model.retrieval import RetrievalModel
from method.model.scoring import similarity
from method.training.batch_losses import training_losses
from tests.helpers import reference_model
from tests.helpers.small_models import (
    SMALL,
    VARIANTS,
    lively_model,
    naive_copy,
    random_rows,
    random_streams,
    whole_batch,
)

ACTION, OBJECT = [7, 1, 24, 12], [5, 9, 20, 1]
VARIANT = pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
VALID = pytest.mark.parametrize(
    "changes", [c for c in VARIANTS.values() if c.get("fusion_extent") != "padded"],
    ids=[name for name, c in VARIANTS.items() if c.get("fusion_extent") != "padded"],
)  # fmt: skip


def keys_of(model: RetrievalModel, streams: dict[str, Ragged]) -> dict[str, list[torch.Tensor]]:
    with torch.no_grad():
        return {name: reference_model.split_values(keys) for name, keys in model.encode_videos(streams).items()}


@pytest.mark.parametrize("changes", [c for c in VARIANTS.values() if "temperatures" not in c],
    ids=[name for name, c in VARIANTS.items() if "temperatures" not in c])  # fmt: skip
def test_equals_the_naive_implementation(changes: dict[str, Any]) -> None:
    model = lively_model(**changes)
    streams = random_streams(model.architecture, ACTION, OBJECT)
    tokens = random_rows([4, 10, 1, 6, 3], model.architecture.query_width, 3)
    naive = naive_copy(model)
    with torch.no_grad():
        expected = naive.encode_videos(streams["action"], streams["object"])
        queries = model.encode_queries(tokens)
        for name, suffix in (("action", ""), ("object", "_phrase")):
            padded, mask = expected[name]
            for ours, frames, valid in zip(keys_of(model, streams)[name], padded, mask, strict=True):
                torch.testing.assert_close(ours, frames[valid], atol=2e-5, rtol=1e-4)
            torch.testing.assert_close(
                queries[name],
                naive.encode_queries(suffix, *reference_model.pad(reference_model.split_values(tokens))),
                atol=1e-5,
                rtol=1e-4,
            )
            scores = similarity(model.encode_videos(streams)[name], queries[name])
            cosine, raw = reference_model.scores(padded, mask, queries[name])
            torch.testing.assert_close(scores.cosine_QB, cosine, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(scores.raw_QB, raw, atol=1e-4, rtol=1e-4)


@VALID
def test_a_video_is_independent_of_its_batch(changes: dict[str, Any]) -> None:
    model = lively_model(**changes)
    together = keys_of(model, random_streams(model.architecture, ACTION, OBJECT))
    streams = random_streams(model.architecture, ACTION, OBJECT)
    order = [2, 0, 3, 1]
    shuffled = {
        name: Ragged.of([reference_model.split_values(rows)[i] for i in order]) for name, rows in streams.items()
    }
    for name, keys in keys_of(model, shuffled).items():
        for index, video in enumerate(order):
            torch.testing.assert_close(keys[index], together[name][video], atol=1e-5, rtol=1e-4)
    for video in range(len(ACTION)):
        alone = {name: reference_model.split(rows)[video] for name, rows in streams.items()}
        for name, keys in keys_of(model, alone).items():
            torch.testing.assert_close(keys[0], together[name][video], atol=1e-5, rtol=1e-4)


def test_padding_leaks_with_the_published_extent_only() -> None:
    """The published program fails the test above."""
    model = lively_model(fusion_extent="padded")
    streams = random_streams(model.architecture, ACTION, OBJECT)
    alone = {name: reference_model.split(rows)[0] for name, rows in streams.items()}
    difference = keys_of(model, alone)["action"][0] - keys_of(model, streams)["action"][0]
    assert difference.abs().max() > 1e-3


@VARIANT
def test_a_query_is_independent_of_its_batch(changes: dict[str, Any]) -> None:
    model = lively_model(**changes)
    tokens = random_rows([4, 10, 1], model.architecture.query_width)
    with torch.no_grad():
        together = model.encode_queries(tokens)
        for index, alone in enumerate(reference_model.split(tokens)):
            for name, vector in model.encode_queries(alone).items():
                torch.testing.assert_close(vector[0], together[name][index], atol=1e-5, rtol=1e-4)


@VARIANT
@pytest.mark.parametrize("lengths", [(ACTION, OBJECT), ([1], [1]), ([1], [8]), ([8], [1])], ids=str)
def test_every_weight_gets_a_gradient(changes: dict[str, Any], lengths: tuple[list[int], list[int]]) -> None:
    model = lively_model(**changes).train()
    streams = random_streams(model.architecture, *lengths)
    videos = len(lengths[0])
    tokens = random_rows([3, 5] * videos, model.architecture.query_width)
    edits = {
        name: EditedQueries(random_rows([4, 2, 3], model.architecture.query_width, 9), torch.tensor([0, 0, 1]))
        for name in model.branches
    }
    labels = torch.arange(videos).repeat_interleave(2)
    sharded = whole_batch(streams, tokens, labels, edits)
    terms = training_losses(model, sharded, LossSettings(), False, edits)
    loss = total(terms)
    loss.backward()
    assert torch.isfinite(loss)
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        assert torch.isfinite(weight.grad).all(), name
        if videos > 1 and not name.endswith("bias"):
            assert weight.grad.abs().max() > 0, name


def test_initial_weights() -> None:
    torch.manual_seed(0)
    model = RetrievalModel(SMALL)
    state = model.state_dict()
    assert state["branches.action.frames.positions.weight"].std().item() == pytest.approx(0.02, rel=0.15)
    assert state["fusions.action.feed_forward.inner.weight"].std().item() == pytest.approx(0.02, rel=0.05)
    assert all(
        not weight.any() for name, weight in state.items() if name.endswith("bias") and "convolution" not in name
    )
    assert state["temperatures.action"].item() == pytest.approx(1 / 0.07)
    assert state["fusions.action.logit_scale"].item() == pytest.approx(70 / 128**0.5)
