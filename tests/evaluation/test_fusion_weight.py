"""The fusion weight that is fitted to the captions of a split."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from method.config.options import read_options
from method.config.settings import evaluation_settings
from method.evaluation.fusion_weight import FUSION_WEIGHTS, best_settings, candidates
from method.evaluation.ranking import rank
from method.model.branch_spec import BranchSpec
from method.model.retrieval import RetrievalModel
from method.runtime.processes import SINGLE_PROCESS
from tests.evaluation.corpora import Encoded, random_encoded, settings_of
from tests.helpers.small_models import SMALL, VARIANTS, lively_model, many_branches


def fitted(encoded: Encoded, memory_mb: int = 64) -> float:
    settings = [settings_of(weight, memory_mb) for weight in FUSION_WEIGHTS]
    return best_settings(encoded.corpus(), encoded.queries(), settings, SINGLE_PROCESS).weights["action"]


def noisy_branches(action: float, object_: float) -> Encoded:
    """Videos whose captions are frames of theirs, with this much noise in each branch."""
    encoded = random_encoded(150, 150, longest=6, width=8)
    generator = torch.Generator().manual_seed(2)
    for name, noise in (("action", action), ("object", object_)):
        own = torch.stack([frames[0] for frames in encoded.frames[name]])
        encoded.vectors[name] = torch.nn.functional.normalize(
            own + noise * torch.randn(own.shape, generator=generator), dim=1
        )
    return encoded


@pytest.mark.parametrize(("action", "object_"), [(0.5, 0.5), (0.3, 0.9), (0.9, 0.3), (1.5, 0.2)])
@pytest.mark.parametrize("memory_mb", [64, 1])
def test_it_is_the_one_with_the_highest_sumr(action: float, object_: float, memory_mb: int) -> None:
    encoded = noisy_branches(action, object_)
    sumr = {}
    for weight in FUSION_WEIGHTS:
        metrics = rank(encoded.corpus(), encoded.queries(), settings_of(weight)).metrics
        sumr[weight] = metrics["fused"]["sumr"]
    best = max(sumr.values())
    assert fitted(encoded, memory_mb) == next(weight for weight in FUSION_WEIGHTS if sumr[weight] == best)
    assert best >= max(metrics["action"]["sumr"], metrics["object"]["sumr"])  # 0 and 1 are among them


def test_it_follows_the_better_branch() -> None:
    assert fitted(noisy_branches(0.3, 1.2)) > 0.5 > fitted(noisy_branches(1.2, 0.3))


def test_equally_good_weights_leave_both_branches_equal() -> None:
    encoded = random_encoded(20, 20, longest=3)
    for name in encoded.frames:
        encoded.frames[name] = [torch.ones_like(frames) for frames in encoded.frames[name]]  # all scores are equal
    assert fitted(encoded) == 0.5


AUDIO = {"audio": BranchSpec("audio_feat", 5, weight=0.0)}
ACTION = {"action": SMALL.branches["action"]}


@pytest.mark.parametrize(("model", "fitted"), [
    (lively_model(), FUSION_WEIGHTS),
    (lively_model(branches={**SMALL.branches, **AUDIO}, temperatures=()), FUSION_WEIGHTS),
    (lively_model(branches={**ACTION, **AUDIO}, fusion="none", temperatures=()), [0.5]),
    (many_branches(("a", "b", "c")), [0.5]),
    (lively_model(**VARIANTS["action-only"]), [0.5]),
], ids=["two", "three", "a second that does not count", "others", "one"])  # fmt: skip
def test_what_is_tried(model: RetrievalModel, fitted: list[float]) -> None:
    settings = replace(evaluation_settings(read_options(["--dataset_name", "charades"])), fusion_weight=0.3)
    (given,) = candidates(settings, model)
    assert given.fusion_weight == 0.3
    every = candidates(replace(settings, fusion_weight=None), model)
    assert [one.fusion_weight for one in every] == fitted
    assert all(sum(one.weights.values()) == pytest.approx(1) for one in every)
