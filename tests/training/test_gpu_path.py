"""Steps and evaluations on a GPU: host-device syncs on a fake one, results on a real one where there is one."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from method import ops
from method.config.training_settings import LoopSettings
from method.data.batch import QueryBatch, VideoBatch
from method.data.captions import Caption
from method.data.edits import KINDS, EditedQueries, PreparedEdits
from method.data.ragged import Ragged
from method.evaluation import ranking
from method.evaluation.corpus import Corpus, QuerySet, encode_corpus, encode_queries
from method.evaluation.ranking import rank_block, target_indices
from method.evaluation.scorer import Scorer
from method.evaluation.winners import Winners
from method.model.losses import LossSettings, total
from method.model.retrieval import RetrievalModel
from method.negatives.cached import CachedNegatives
from method.ops.precision import autocast
from method.runtime import hardware
from method.runtime.errors import InputError
from method.training.loop import Training
from method.training.optimizer import Schedule
from method.training.sharded_batch import ShardedBatch
from method.training.step import training_losses
from tests.evaluation.corpora import settings_of
from tests.helpers.fake_gpu import GPU, NothingAsked, PretendedGpu, Waits, on_gpu
from tests.helpers.reference_model import split_values
from tests.helpers.small_models import VARIANTS, lively_model, random_rows, random_streams

CPU = torch.device("cpu")
LOSSES = LossSettings(hard_pool_size=3, weights={"triplet": 1.0, "nce": 0.02, "negative_queries": 0.5})
LABELS = [0, 0, 1, 2, 2, 2, 3]
LENGTHS = {"mixed lengths": ([7, 1, 24, 12], [5, 9, 20, 1]), "equal lengths": ([9, 9, 9, 9], [6, 6, 6, 6])}
VARIANT = pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
HARD = pytest.mark.parametrize("hard", [False, True], ids=["random", "hard"])
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def batch_for(model: RetrievalModel, lengths: str = "mixed lengths") -> VideoBatch:
    captions = tuple(Caption(f"v{video}#enc#{place}", f"v{video}", "") for place, video in enumerate(LABELS))
    streams = random_streams(model.architecture, *LENGTHS[lengths])
    tokens = [4, 10, 1, 6, 3, 8, 5] if lengths == "mixed lengths" else [5] * len(LABELS)
    rows, labels_Q = random_rows(tokens, 8, 3), torch.tensor(LABELS)
    return VideoBatch(("v0", "v1", "v2", "v3"), streams, captions, rows, labels_Q, Edits().prepare(captions, 0))


def edits_for(branch: str) -> EditedQueries:
    rows = random_rows([2, 4, 1, 3], 8, seed=4 if branch == "action" else 5)
    return EditedQueries(rows, torch.tensor([0, 0, 2, 5] if branch == "action" else [1, 3, 3, 6]))


class Edits(CachedNegatives):
    """The same edits for any batch, in half precision, as from a cache."""

    def __init__(self) -> None:
        pass

    def prepare(self, captions: Sequence[Caption], epoch: int) -> PreparedEdits:
        made = {kind: edits_for(kind) for kind in KINDS}
        rows = Ragged.of([rows.half() for edits in made.values() for rows in split_values(edits.queries)])
        owners = {kind: edits.owner_E.tolist() for kind, edits in made.items()}
        return PreparedEdits.of(rows, range(len(rows)), owners)


def training_of(
    model: RetrievalModel,
    device: torch.device,
    hard: bool = False,
    amp: str = "off",
    losses: LossSettings = LOSSES,
) -> Training:
    settings = LoopSettings(
        epochs=100,
        early_stop=10,
        hard_from_epoch=0 if hard else 20,
        grad_clip=1.0,
        amp=amp,
        losses=losses,
        seed=0,
    )
    return Training(model, settings, Schedule(peak=0.01, warmup=0.0, steps=300), 0.01, device, Edits())


@pytest.fixture
def gpu_style(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU runs the operations of a GPU."""
    monkeypatch.setenv(ops.VARIABLE, "reference")


# On the fake GPU


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> PretendedGpu:
    for module in ("method.training.step", "method.evaluation.corpus"):
        monkeypatch.setattr(f"{module}.autocast", lambda device, precision: contextlib.nullcontext())
    monkeypatch.setattr("torch.nn.utils.clip_grad._device_has_foreach_support", lambda device: True)
    return PretendedGpu(monkeypatch)


@VARIANT
@HARD
def test_a_step_waits_for_nothing(
    changes: dict[str, Any], hard: bool, gpu: PretendedGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = lively_model(**changes).train()
    batch = batch_for(model)
    training = training_of(model, GPU, hard)
    read: list[int] = []

    class Losses(hardware.AsyncScalars):
        def __init__(self, numbers: Tensor) -> None:
            super().__init__(numbers)
            self.count = len(numbers)

        def read(self) -> list[float]:
            assert all(weight.grad is not None and on_gpu(weight.grad) for weight in model.parameters())
            read.append(self.count)
            return [1.0] * self.count

    monkeypatch.setattr(hardware, "AsyncScalars", Losses)
    assert batch.edits is not None
    with gpu:
        training.step(batch.pin_memory())
    assert len(read) == 1
    assert gpu.times_pinned(batch.edits.rows.values.shape) == 1  # by the loader, not again by the step
    assert all(on_gpu(state["first_moment"]) for state in training.optimizer.state.values())


@VARIANT
def test_an_evaluation_asks_once_a_block(
    changes: dict[str, Any], gpu: PretendedGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = lively_model(**changes).to(GPU)
    batch = batch_for(model)
    assert batch.tokens is not None
    asked: list[set[str]] = []
    monkeypatch.setattr(ranking, "non_finite_score", lambda scores: asked.append(set(scores)))
    with gpu:
        corpus = encode_corpus(model, [batch.pin_memory()], GPU)
        queries = encode_queries(model, [QueryBatch(batch.captions, batch.tokens).pin_memory()], GPU)
        ranks = ranks_of_blocks(corpus, queries)
    assert asked == [{*model.branches, "fused"}]
    assert all(on_gpu(ranks_q) for ranks_q in ranks.values())


def ranks_of_blocks(corpus: Corpus, queries: QuerySet) -> dict[str, Tensor]:
    target_Q = target_indices(corpus, queries)
    ((part, scores),) = Scorer(corpus, settings_of(0.5)).blocks(queries)
    for scores_qV in scores.values():
        Winners.empty(target_Q).fill(part, scores_qV, target_Q[part])
    return rank_block(scores, target_Q[part], queries.captions[part])


@pytest.mark.usefixtures("gpu_style")
@VARIANT
def test_half_precision_asks_for_nothing(changes: dict[str, Any]) -> None:
    """On a CPU, whose autocast casts the same operations."""
    model = lively_model(**changes).train()
    batch, edits = batch_for(model), {name: edits_for(name) for name in model.branches}
    with NothingAsked(), autocast(CPU, "bf16"):
        loss = total(training_losses(model, ShardedBatch(batch, edits), LOSSES, True, edits))
    with NothingAsked():
        loss.backward()
    assert torch.isfinite(loss)
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in model.parameters())


def broken_losses(*arguments: Any) -> dict[str, Tensor]:
    return {name: term * torch.nan for name, term in training_losses(*arguments).items()}


def test_a_refused_step_leaves_no_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    model = lively_model().train()
    training = training_of(model, CPU)
    batch = batch_for(model)
    training.step(batch)
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    monkeypatch.setattr("method.training.step.training_losses", broken_losses)
    with pytest.raises(InputError, match="nothing was updated"):
        training.step(batch)
    assert all(weight.grad is None for weight in model.parameters())
    assert training.optimizer.param_groups[0]["step"] == 1
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())


# The fake GPU notices mistakes


MISTAKES: dict[str, Callable[[Tensor], Any]] = {
    "item": lambda rows: rows.sum().item(),
    "bool": lambda rows: bool(rows.any()),
    "tolist": lambda rows: rows.tolist(),
    "mask": lambda rows: rows[rows > 0],
    "nonzero": lambda rows: rows.nonzero(),
    "equal": lambda rows: torch.equal(rows, rows),
    "unique": lambda rows: rows.unique(),
    "unknown size": lambda rows: torch.repeat_interleave(rows.long()[0]),
    "to the CPU": lambda rows: rows.cpu(),
    "blocking": lambda rows: torch.ones(3).pin_memory().to(GPU),
    "pageable": lambda rows: torch.ones(3).to(GPU, non_blocking=True),
    "a list": lambda rows: torch.tensor([1, 2], device=GPU),
    "into a table": lambda rows: rows.copy_(torch.ones(4, 8)),
    "product of devices": lambda rows: rows @ torch.ones(8, 3),
    "sum of devices": lambda rows: rows + torch.ones(8),
    "index elsewhere": lambda rows: rows[torch.tensor([0, 2])],
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_noticed(mistake: Callable[[Tensor], Any], gpu: PretendedGpu) -> None:
    rows = torch.ones(4, 8, device=GPU)
    with gpu, pytest.raises((Waits, NotImplementedError, RuntimeError), match=r"GPU|meta|blocks"):
        mistake(rows)


@pytest.mark.parametrize("mistake", ["item", "bool", "mask", "nonzero", "equal", "unique", "unknown size"])
def test_mistakes_are_noticed_on_a_cpu(mistake: str) -> None:
    with NothingAsked(), pytest.raises(Waits):
        MISTAKES[mistake](torch.ones(4, 8))


def test_a_wait_within_a_step_is_noticed(gpu: PretendedGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    model = lively_model().train()
    batch, training = batch_for(model), training_of(model, GPU)

    def losses(*arguments: Any) -> dict[str, Tensor]:
        terms = training_losses(*arguments)
        assert next(iter(terms.values())).item() < 1e9
        return terms

    monkeypatch.setattr("method.training.step.training_losses", losses)
    with gpu, pytest.raises(Waits, match="asks the GPU"):
        training.step(batch.pin_memory())


# On a GPU


@needs_gpu
@pytest.mark.usefixtures("lowest_for_random")  # each device draws other random numbers
@VARIANT
@HARD
def test_a_step_on_a_gpu_is_that_of_a_cpu(changes: dict[str, Any], hard: bool) -> None:
    losses, gradients = [], []
    for device in (CPU, torch.device("cuda")):
        model = lively_model(**changes)
        training = training_of(model, device, hard, losses=replace(LOSSES, hard_pool_size=1))
        losses.append(training.step(batch_for(model)))
        gradients.append(
            {name: weight.grad.cpu() for name, weight in model.named_parameters() if weight.grad is not None}
        )
    assert losses[1] == pytest.approx(losses[0], abs=1e-4, rel=1e-4)
    assert gradients[1].keys() == gradients[0].keys()
    for name, gradient in gradients[1].items():
        torch.testing.assert_close(gradient, gradients[0][name], atol=1e-4, rtol=1e-3)


@needs_gpu
@pytest.mark.parametrize("amp", ["off", "bf16"])
@VARIANT
@HARD
def test_a_step_on_a_gpu_waits_for_nothing(changes: dict[str, Any], hard: bool, amp: str) -> None:
    model = lively_model(**changes).train()
    training = training_of(model, torch.device("cuda"), hard, amp)
    batch = batch_for(model).pin_memory()
    training.step(batch)  # libraries may wait when they are used for the first time
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that it does not notice every wait
        torch.cuda.set_sync_debug_mode("error")
    try:
        losses = training.step(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(math.isfinite(value) for value in losses.values())


@needs_gpu
def test_an_evaluation_on_a_gpu_is_that_of_a_cpu() -> None:
    found = []
    for device in (CPU, torch.device("cuda")):
        model = lively_model().to(device)
        batch = batch_for(model)
        assert batch.tokens is not None
        corpus = encode_corpus(model, [batch], device)
        queries = encode_queries(model, [QueryBatch(batch.captions, batch.tokens)], device)
        ((_, scores),) = Scorer(corpus, settings_of(0.5)).blocks(queries)
        found.append({name: scores_qV.cpu() for name, scores_qV in scores.items()})
    for name, scores_qV in found[1].items():
        torch.testing.assert_close(scores_qV, found[0][name], atol=1e-4, rtol=1e-4)
