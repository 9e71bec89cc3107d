"""Initial weights: whitened inputs, the fusion that begins where it looks, and who gets them."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from method import train
from method.config.training_settings import InitializationSettings
from method.data.captions import Caption
from method.data.ragged import Ragged
from method.model.architecture import Architecture
from method.model.fusion import AttentionFusion, DeformableFusion
from method.model.retrieval import RetrievalModel
from method.runtime.errors import Stopped
from method.runtime.processes import SINGLE_PROCESS
from method.training import build
from method.training.checkpoint_file import read_checkpoint
from method.training.initialization import initialize
from tests.helpers.runs import Crash, assert_same_run, crash, send
from tests.helpers.small_dataset import SmallDataset, run_train
from tests.helpers.small_models import SMALL, changed, random_rows

VIDEOS, ROWS = 40, 20
CAPTIONS = [Caption(f"v{number}#enc#0", f"v{number}", "text") for number in range(VIDEOS)]


class Features:
    """A reader of anisotropic features: each stream has a large mean and few strong directions."""

    def __init__(self, architecture: Architecture, scale: float = 1.0) -> None:
        torch.manual_seed(3)
        widths = {name: width for name, (_, width) in architecture.streams.items()} | {
            "tokens": architecture.query_width
        }
        self.rows = {name: self._rows(width, scale) for name, width in widths.items()}
        self.read: list[str] = []

    @staticmethod
    def _rows(width: int, scale: float) -> list[Tensor]:
        strengths = scale * torch.linspace(2.0, 0.1, width)
        mixing = torch.linalg.qr(torch.randn(width, width))[0]
        return [(torch.randn(ROWS, width) * strengths) @ mixing + torch.linspace(-3, 3, width) for _ in range(VIDEOS)]

    def gather_videos(self, ids: Sequence[str]) -> dict[str, Ragged]:
        self.read += ids
        return {name: self._gather(rows, ids) for name, rows in self.rows.items() if name != "tokens"}

    def gather_queries(self, ids: Sequence[str]) -> Ragged:
        return self._gather(self.rows["tokens"], ids)

    @staticmethod
    def _gather(rows: list[Tensor], ids: Sequence[str]) -> Ragged:
        return Ragged.of([rows[int(name.split("#")[0][1:])] for name in ids])


def initialized(architecture: Architecture, scale: float = 1.0, **settings: str) -> tuple[RetrievalModel, Features]:
    torch.manual_seed(0)
    model, features = RetrievalModel(architecture), Features(architecture, scale)
    initialize(model, InitializationSettings(seed=1, **settings), features, CAPTIONS, SINGLE_PROCESS)  # type: ignore[arg-type]
    return model, features


@pytest.mark.parametrize("hidden", [4, 16])  # less and more than the widths of the features
def test_whitened_inputs(hidden: int) -> None:
    architecture = changed(SMALL, hidden_size=hidden, offset_groups=4)
    model, features = initialized(architecture, inputs="whitened")
    for name in model.branches:
        for encoder, rows in (
            (model.branch(name).frames, features.rows[name]),
            (model.branch(name).tokens, features.rows["tokens"]),
        ):
            width = encoder.input.in_features
            normalized = F.layer_norm(torch.cat(rows), (width,))
            projected = encoder.input(normalized).detach().double()
            torch.testing.assert_close(projected.mean(0), torch.zeros(hidden, dtype=torch.float64), atol=1e-4, rtol=0)
            covariance = projected.t().cov(correction=0)
            variance = architecture.initializer_range**2 * width
            assert covariance.diagonal().mean() == pytest.approx(variance, rel=1e-3)
            if hidden == 4:  # not so for more rows than directions
                normal = torch.randn(hidden, width, dtype=torch.float64) @ normalized.t().double()
                assert 3 * condition(covariance) < condition(normal.cov())


def condition(covariance: Tensor) -> float:
    values = torch.linalg.eigvalsh(covariance)
    return float(values.max() / values.min())


def test_inputs_without_variance_stay_finite() -> None:
    model, _ = initialized(SMALL, scale=0.0, inputs="whitened")
    assert all(weight.isfinite().all() for weight in model.state_dict().values())


def test_branches_read_the_same_tokens_by_different_projections() -> None:
    model, _ = initialized(SMALL, inputs="whitened")
    action, object_ = (model.branch(name).tokens.input.weight for name in ("action", "object"))
    assert not torch.allclose(action, object_)


def test_aligned_deformable_fusion() -> None:
    architecture = changed(SMALL, offset_scale=24.0, hidden_size=64)
    frames = random_rows([ROWS] * 6, 64)
    rows = frames.with_values(F.layer_norm(frames.values, (64,)))
    offsets, shares = {}, {}
    for kind in ("normal", "aligned"):
        fusion = initialized(architecture, fusion=kind)[0].fusions["action"]
        assert isinstance(fusion, DeformableFusion)
        offsets[kind] = fusion._offsets(rows).values.abs().mean().item()
        values = fusion.to_value.second(F.relu(fusion.to_value.first(rows.values)))
        shares[kind] = float(values.detach().norm() / rows.values.norm())
    assert offsets["aligned"] < 0.5 < 1.5 < offsets["normal"]
    assert shares["normal"] < 0.1
    assert 0.5 < shares["aligned"] < 2


def test_aligned_attention_fusion() -> None:
    model, _ = initialized(changed(SMALL, fusion="attention"), fusion="aligned")
    fusion = model.fusions["action"]
    assert isinstance(fusion, AttentionFusion)
    for layer in (fusion.value, fusion.output):
        torch.testing.assert_close(layer.weight @ layer.weight.t(), torch.eye(16), atol=1e-5, rtol=0)


def test_normal_initialization_changes_and_reads_nothing() -> None:
    model, features = initialized(SMALL)
    torch.manual_seed(0)
    expected = RetrievalModel(SMALL).state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in model.state_dict().items())
    assert not features.read


def test_a_training_starts_so_and_does_not_depend_on_other_random_numbers(small: SmallDataset) -> None:
    flags = ["--input_init", "whitened", "--fusion_init", "aligned"]
    first, second = (_trained(small, name, *flags) for name in ("a", "b"))
    plain = _trained(small, "c")
    weights = {name: (first[name], second[name], plain[name]) for name in first}
    assert all(torch.equal(own, again) for own, again, _ in weights.values())
    different = {name for name, (own, _, normal) in weights.items() if not torch.allclose(own, normal, atol=1e-6)}
    inputs = {f"branches.{name}.{kind}.input.{part}" for name in ("action", "object") for kind in ("frames", "tokens")
        for part in ("weight", "bias")}  # fmt: skip
    fusion = {f"fusions.action.{name}.weight" for name in ("to_value.first", "to_value.second", "offset_output")}
    assert different == inputs | fusion


@pytest.mark.parametrize("saved", [True, False])
def test_a_run_stopped_before_its_first_step_resumes_exactly(
    small: SmallDataset, saved: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a signal, which saves the initial weights, or by a kill, after which they are computed again."""
    flags = small.flags("--n_epoch", "1", "--input_init", "whitened", "--fusion_init", "aligned")
    unbroken = run_train([*flags, "--description", "unbroken"])
    end, loader = send(signal.SIGTERM) if saved else crash, build.training_loader

    def ended(*arguments: Any) -> Any:
        end()
        return loader(*arguments)

    monkeypatch.setattr(train, "training_loader", ended)
    with pytest.raises(Stopped if saved else Crash):
        run_train([*flags, "--description", "stopped"])
    monkeypatch.undo()
    run = small.results / "stopped"
    assert (run / "last.ckpt").exists() == saved
    if saved:
        progress = read_checkpoint(run / "last.ckpt")["progress"]
        assert (progress["epoch"], progress["step"]) == (0, 0)
    run_train(["--resume", str(run), "--device", "-1"])
    assert_same_run(run, unbroken)


def _trained(small: SmallDataset, name: str, *flags: str) -> dict[str, Tensor]:
    run = run_train(small.flags("--description", name, "--lr", "1e-9", "--n_epoch", "1", *flags))
    weights: dict[str, Tensor] = read_checkpoint(run / "model.ckpt")["model"]
    return weights
