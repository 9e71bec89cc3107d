"""Small models and batches of every kind for the tests."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from method.data.batch import VideoBatch
from method.data.preprocessing import normalize_rows
from method.data.ragged import Ragged
from method.model.architecture import Architecture
from method.model.published import to_published
from method.model.retrieval import Branch, RetrievalModel
from method.training.sharded_batch import Share
from tests.helpers.reference_model import NaiveModel

SMALL = Architecture(
    action_width=10,
    object_width=6,
    object_sees="clip",
    query_width=8,
    hidden_size=16,
    heads=4,
    max_frames=24,
    max_words=10,
    input_dropout=0.1,
    dropout=0.1,
    initializer_range=0.02,
    fusion="deformable",
    fusion_asks="i3d_q",
    fusion_extent="valid",
    fusion_positions=False,
    fusion_heads=4,
    offset_groups=4,
    offset_count=3,
    offset_scale=5.0,
    offset_kernel=3,
    temperatures=("action", "object"),
)

VARIANTS: dict[str, dict[str, Any]] = {
    f"{fusion}-{asks}-{extent}": {"fusion": fusion, "fusion_asks": asks, "fusion_extent": extent}
    for fusion, extent in (("deformable", "valid"), ("deformable", "padded"), ("attention", "valid"))
    for asks in ("i3d_q", "clip_q", "double_q")
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
    model = RetrievalModel(replace(SMALL, **changes))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() and "norm" not in name:
                weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
            elif weight.dim():
                weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    return model.eval()


class ManyBranches(nn.Module):
    """Independent branches of any names, each a model with that one branch, in the place of a `RetrievalModel`."""

    def __init__(self, branches: Iterable[str]) -> None:
        super().__init__()
        one_branch: dict[str, Any] = {"fusion": "none", "object_width": None, "temperatures": ()}
        self.models = nn.ModuleDict({name: lively_model(**one_branch) for name in branches})
        self.architecture = replace(SMALL, **one_branch)
        self.eval()

    @classmethod
    def of(cls, branches: Iterable[str]) -> RetrievalModel:
        return cast(RetrievalModel, cls(branches))

    @property
    def branches(self) -> nn.ModuleDict:
        return self.models

    def branch(self, name: str) -> Branch:
        return self._model(name).branch("action")

    def encode_videos(self, streams: Mapping[str, Ragged]) -> dict[str, Ragged]:
        return {name: self._model(name).encode_videos({"action": streams[name]})["action"] for name in self.models}

    def encode_queries(self, tokens: Ragged) -> dict[str, Tensor]:
        return {name: self._model(name).encode_queries(tokens)["action"] for name in self.models}

    def _model(self, name: str) -> RetrievalModel:
        return cast(RetrievalModel, self.models[name])


def naive_twin(model: RetrievalModel) -> NaiveModel:
    return NaiveModel(to_published(model.state_dict(), model.architecture), model.architecture).train(model.training)


def random_rows(lengths: list[int], width: int, seed: int = 0) -> Ragged:
    generator = torch.Generator().manual_seed(seed)
    return Ragged.of([normalize_rows(torch.randn(length, width, generator=generator)) for length in lengths])


def whole_batch(streams: dict[str, Ragged], tokens: Ragged, labels_Q: torch.Tensor, edited: Collection[str]) -> Share:
    """What training computes the losses of, without the names of videos and captions."""
    videos = tuple(str(place) for place in range(len(next(iter(streams.values())))))
    return Share(VideoBatch(videos, streams, (), tokens, labels_Q), edited)


def random_streams(architecture: Architecture, action: list[int], object_: list[int]) -> dict[str, Ragged]:
    streams = {}
    if architecture.action_width is not None:
        streams["action"] = random_rows(action, architecture.action_width, 1)
    if architecture.object_width is not None:
        streams["object"] = random_rows(object_, architecture.object_width, 2)
    return streams
