"""A class that cannot be a head is refused where a head is chosen, with the reason."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor, nn

from method.config.options import read_options
from method.data.ragged import Ragged
from method.model.retrieval import HEADS, Branch
from method.model.scoring import Similarity
from method.runtime.errors import InputError
from tests.helpers.small_models import lively_model


class OtherNames(Branch):
    """A head may call its arguments what it likes, and take more that have defaults."""

    def score(self, clips: Ragged, vectors_QD: Tensor, sharpness: float = 10.0) -> Similarity:
        return super().score(clips, vectors_QD)


class NoQueries(Branch):
    def score(self, keys: Ragged) -> Similarity:  # type: ignore[override]
        raise AssertionError


class MoreVideos(Branch):
    def encode_videos(self, frames: Ragged, spans: Ragged) -> Ragged:  # type: ignore[override]
        raise AssertionError


@pytest.mark.parametrize(("head", "reason"), [
    (nn.Linear, r"torch.nn.modules.linear.Linear'> is no subclass of Branch"),
    (lambda width, architecture: Branch(width, architecture), r"<function <lambda> at \w+> is no subclass of Branch"),
    (NoQueries, "NoQueries.score is not called like Branch.score: too many positional arguments"),
    (MoreVideos, "MoreVideos.encode_videos is not called like Branch.encode_videos: missing a required argument: "
        "'spans'"),
], ids=["no branch", "a function", "too few arguments", "too many arguments"])  # fmt: skip
def test_what_is_no_head_is_refused(head: Any, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(HEADS, "own", head)
    with pytest.raises(InputError, match=f"--head own: .*{reason}"):
        read_options(["--dataset_name", "demo", "--head", "own"])
    with pytest.raises(TypeError, match=reason):
        lively_model(head="own")


def test_a_head_may_take_more_arguments_with_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(HEADS, "own", OtherNames)
    assert isinstance(lively_model(head="own").branch("action"), OtherNames)
