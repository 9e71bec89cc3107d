"""Steps and evaluations as a GPU runs them: no host-device syncs, and the results of a CPU where there is a GPU."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from method import ops
from method.config.training_settings import LoopSettings
from method.data.batch import QueryBatch, VideoBatch
from method.data.captions import Caption
from method.data.edits import KINDS, EditedQueries, PreparedEdits
from method.data.ragged import Ragged
from method.evaluation import ranking
from method.evaluation.corpus import encode_corpus, encode_queries, target_indices
from method.evaluation.ranking import rank_block
from method.evaluation.scorer import Scorer
from method.evaluation.winners import Winners
from method.model.losses import LOSSES as ALL_LOSSES
from method.model.losses import NEGATIVE_QUERIES, OPTIMAL_MATCHING, LossSettings, total
from method.model.retrieval import RetrievalModel
from method.negatives.cached import CachedNegatives
from method.runtime import hardware
from method.runtime.errors import InputError
from method.training.batch_losses import training_losses
from method.training.loop import Training
from method.training.optimizer import Schedule
from method.training.sharded_batch import ShardedBatch
from tests.evaluation.corpora import settings_of
from tests.helpers.reference_model import split_values
from tests.helpers.small_models import VARIANTS, averaged, lively_model, random_rows, random_streams

CPU = torch.device("cpu")
LOSSES = LossSettings(hard_pool_size=3, weights={"triplet": 1.0, "nce": 0.02, "negative_queries": 0.5})
LABELS = [0, 0, 1, 2, 2, 2, 3]
LENGTHS = {"mixed lengths": ([7, 1, 24, 12], [5, 9, 20, 1]), "equal lengths": ([9, 9, 9, 9], [6, 6, 6, 6])}
VARIANT = pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
HARD = pytest.mark.parametrize("hard", [False, True], ids=["random", "hard"])
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def batch_for(model: RetrievalModel, lengths: str = "mixed lengths") -> VideoBatch:
    captions = tuple(Caption(f"v{video}#enc#{index}", f"v{video}", "") for index, video in enumerate(LABELS))
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
    model: RetrievalModel, device: torch.device, hard: bool = False, amp: str = "off", losses: LossSettings = LOSSES
) -> Training:
    settings = LoopSettings(
        epochs=100,
        early_stop=10,
        hard_from_epoch=0 if hard else 20,
        grad_clip=1.0,
        amp=amp,
        losses=losses,
        seed=0,
        edit_kinds=dict(zip(KINDS, KINDS, strict=True)),
    )
    return Training(model, settings, Schedule(peak=0.01, warmup=0.0, steps=300), 0.01, device, Edits())


@pytest.fixture
def gpu_style(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU runs the operations of a GPU."""
    monkeypatch.setenv(ops.VARIABLE, "reference")


# Without a GPU: nothing reads numbers, which would wait for the kernels of a GPU


_ops = torch.ops.aten
_READS = {_ops._local_scalar_dense.default, _ops.equal.default, _ops.is_nonzero.default, _ops.masked_select.default,
    _ops.nonzero.default, _ops._unique2.default, _ops.unique_consecutive.default}  # fmt: skip


class NoReads(TorchDispatchMode):
    """Operations whose result a program needs before it can go on are refused."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        reads = function in _READS
        if function is _ops.repeat_interleave.Tensor:
            reads = not (kwargs or {}).get("output_size")
        if function is _ops.index.Tensor:
            reads = any(isinstance(index, Tensor) and index.dtype == torch.bool for index in args[1])
        assert not reads, f"{function} waits for the GPU"
        return function(*args, **(kwargs or {}))


MISTAKES: dict[str, Callable[[Tensor], Any]] = {
    "item": lambda rows: rows.sum().item(),
    "bool": lambda rows: bool(rows.any()),
    "mask": lambda rows: rows[rows > 0],
    "nonzero": lambda rows: rows.nonzero(),
    "equal": lambda rows: torch.equal(rows, rows),
    "unique": lambda rows: rows.unique(),
    "unknown size": lambda rows: torch.repeat_interleave(rows.long()[0]),
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_reads_are_noticed(mistake: Callable[[Tensor], Any]) -> None:
    with NoReads(), pytest.raises(AssertionError, match="waits for the GPU"):
        mistake(torch.ones(4, 8))


@pytest.mark.usefixtures("gpu_style")
@VARIANT
@pytest.mark.parametrize(("hard", "amp"), [(False, "off"), (True, "bf16")], ids=["random", "hard"])
def test_a_step_reads_its_losses_and_nothing_else(
    changes: dict[str, Any], hard: bool, amp: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = lively_model(**changes).train()
    training = training_of(model, CPU, hard, amp)
    read: list[Tensor] = []

    class Losses(hardware.AsyncScalars):
        def read(self) -> list[float]:
            assert all(weight.grad is not None for weight in model.parameters())
            read.append(self._numbers)
            return [1.0] * len(self._numbers)

    monkeypatch.setattr(hardware, "AsyncScalars", Losses)
    with NoReads():
        training.step(batch_for(model))
    assert len(read) == 1
    assert read[0].isfinite().all()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in model.parameters())


@pytest.mark.usefixtures("gpu_style")
@HARD
@pytest.mark.parametrize("teacher", ["videos", "average"])
def test_losses_that_are_off_by_default_read_nothing(hard: bool, teacher: str) -> None:
    """Except optimal matching, which is computed on the CPU."""
    weights = {name: 0.1 for name in ALL_LOSSES if name not in (NEGATIVE_QUERIES, OPTIMAL_MATCHING)}
    settings = LossSettings(
        weights=weights, fused="beside", false_negatives="similar", soft_targets=0.5, soft_teacher=teacher
    )
    model = lively_model().train()
    average = averaged(model)
    sharded = ShardedBatch(batch_for(model), ())
    with NoReads():
        generator = torch.Generator().manual_seed(0)
        total(training_losses(model, sharded, settings, hard, {}, generator, average)).backward()
    assert all(weight.grad.isfinite().all() for weight in model.parameters() if weight.grad is not None)


@pytest.mark.usefixtures("gpu_style")
@VARIANT
def test_an_evaluation_reads_once_per_block(changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = lively_model(**changes)
    batch = batch_for(model)
    assert batch.tokens is not None
    read: list[set[str]] = []
    monkeypatch.setattr(ranking, "non_finite_score", lambda scores: read.append(set(scores)))
    with NoReads():
        corpus = encode_corpus(model, [batch], CPU)
        queries = encode_queries(model, [QueryBatch(batch.captions, batch.tokens)], CPU)
        target_Q = target_indices(corpus, queries)
        ((part, scores),) = Scorer(corpus, settings_of(0.5)).blocks(queries)
        for scores_qV in scores.values():
            Winners.empty(target_Q).fill(part, scores_qV, target_Q[part])
        rank_block(scores, target_Q[part], queries.captions[part])
    assert read == [{*model.branches, "fused"}]


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
