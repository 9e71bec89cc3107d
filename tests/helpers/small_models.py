"""Small models and batches of every kind for the tests."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Any

import torch

from method.data.batch import VideoBatch
from method.data.preprocessing import normalize_rows
from method.data.ragged import Ragged
from method.model.architecture import Architecture
from method.model.branch_spec import BranchSpec, two_branches
from method.model.published import to_published
from method.model.retrieval import RetrievalModel
from method.training.average import WeightAverage
from method.training.sharded_batch import ShardedBatch
from tests.helpers.reference_model import NaiveModel

SMALL = Architecture(
    branches=two_branches(("i3d_feat", 10), ("clip_feat", 6), "i3d_q", 5.0),
    query_width=8,
    hidden_size=16,
    heads=4,
    max_frames=24,
    max_words=10,
    input_dropout=0.1,
    dropout=0.1,
    initializer_range=0.02,
    fusion="deformable",
    fusion_extent="valid",
    fusion_positions=False,
    fusion_heads=4,
    offset_groups=4,
    offset_count=3,
    offset_kernel=3,
    temperatures=("action", "object"),
)


def changed(architecture: Architecture, **changes: Any) -> Architecture:
    """The architecture with other fields; also with other branches, by the published options that make these.

    action_width, object_width: None switches a branch off. query: whose frames attend, as --cross_attn_q names them.
    """
    if "branches" in changes:
        return replace(architecture, **changes)
    action, object_ = (architecture.branches[name] for name in ("action", "object"))
    queries = {("action",): "i3d_q", ("object",): "clip_q", ("action", "object"): "double_q"}
    widths = (changes.pop("action_width", action.width), changes.pop("object_width", object_.width))
    first, second = (
        (spec.key, width) if width else None for spec, width in zip((action, object_), widths, strict=True)
    )
    query = changes.pop("query", queries.get(tuple(architecture.fusions), "i3d_q"))
    branches = two_branches(first, second, query, changes.pop("offset_scale", action.offset_scale))
    return replace(architecture, **{"branches": branches, **changes})


VARIANTS: dict[str, dict[str, Any]] = {
    f"{fusion}-{query}-{extent}": {"fusion": fusion, "query": query, "fusion_extent": extent}
    for fusion, extent in (("deformable", "valid"), ("deformable", "padded"), ("attention", "valid"))
    for query in ("i3d_q", "clip_q", "double_q")
}
VARIANTS |= {
    "positions-padded": {"fusion_positions": True, "fusion_extent": "padded"},
    "positions-valid": {"fusion_positions": True},
    "wide-kernel": {"offset_kernel": 5, "fusion_extent": "padded", "offset_scale": 2.0},
    "no-fusion": {"fusion": "none"},
    "action-only": {"fusion": "none", "object_width": None, "temperatures": ("action",)},
    "object-only": {"fusion": "none", "action_width": None, "temperatures": ("object",)},
}


def lively_model(**changes: Any) -> RetrievalModel:
    """A model in evaluation mode whose weights are large enough for every part to matter."""
    model = RetrievalModel(changed(SMALL, **changes))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() and "norm" not in name:
                weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
            elif weight.dim():
                weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    return model.eval()


def averaged(model: RetrievalModel) -> RetrievalModel:
    """The model of a running average that differs from the model."""
    average = WeightAverage(model, 0.5).model
    with torch.no_grad():
        for index, weight in enumerate(average.parameters()):
            weight.mul_(1.1 if index % 2 else 0.8)
    return average


def many_branches(names: Iterable[str]) -> RetrievalModel:
    """A model with independent branches of these names, all of the same width."""
    return lively_model(branches={name: BranchSpec(name, 10) for name in names}, fusion="none", temperatures=())


def branch_weights(branches: Iterable[str], first_weight: float) -> dict[str, float]:
    """Weights in the fused score: the first branch has `first_weight`, the others share the rest equally."""
    first, *others = branches
    return {first: first_weight if others else 1.0} | dict.fromkeys(others, (1 - first_weight) / max(len(others), 1))


def naive_copy(model: RetrievalModel) -> NaiveModel:
    return NaiveModel(to_published(model.state_dict(), model.architecture), model.architecture).train(model.training)


def random_rows(lengths: list[int], width: int, seed: int = 0) -> Ragged:
    generator = torch.Generator().manual_seed(seed)
    return Ragged.of([normalize_rows(torch.randn(length, width, generator=generator)) for length in lengths])


def whole_batch(
    streams: dict[str, Ragged], tokens: Ragged, labels_Q: torch.Tensor, edited: Collection[str]
) -> ShardedBatch:
    """What training computes the losses of, without the names of videos and captions."""
    videos = tuple(str(index) for index in range(len(next(iter(streams.values())))))
    return ShardedBatch(VideoBatch(videos, streams, (), tokens, labels_Q), edited)


def random_streams(architecture: Architecture, action: list[int], object_: list[int]) -> dict[str, Ragged]:
    """A stream of each branch; those beside action and object are as long as the former."""
    lengths, seeds = {"object": object_}, {"action": 1, "object": 2}
    return {
        name: random_rows(lengths.get(name, action), spec.width, seeds.get(name, 3 + number))
        for number, (name, spec) in enumerate(architecture.branches.items())
    }
