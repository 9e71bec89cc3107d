"""Attention over samples against attention over samples that are made one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from method.ops import chunking as recomputing
from method.ops.cpu import deformable_attention as sample_attention
from method.ops.cpu import dropout
from method.ops.cpu.deformable_attention import Samples, TwoLayers, attend_to_samples
from method.ops.reference import sampled
from tests.helpers.gradients import loss, slope

LENGTHS, READ = (5, 1, 9), (7, 3, 4)  # rows that ask, and rows that are read, of three videos
N, K, J, G, H, D = 15, 14, 3, 4, 2, 12


class Case(NamedTuple):
    query_ND: Tensor
    rows_KD: Tensor
    keys: TwoLayers
    values: TwoLayers
    places_NJG2: Tensor
    shares_NJG2: Tensor
    scale: Tensor

    @classmethod
    def random(cls) -> Case:
        torch.manual_seed(0)
        first_N = torch.tensor([0, 7, 10]).repeat_interleave(torch.tensor(LENGTHS))
        count_N = torch.tensor(READ).repeat_interleave(torch.tensor(LENGTHS))
        within = (torch.rand(N, J, G, 2) * count_N[:, None, None, None]).long()
        tensors = [torch.randn(shape, requires_grad=True) for shape in ((N, D), (K, D), (N, J, G, 2))]
        query_ND, rows_KD, shares_NJG2 = tensors
        places_NJG2, scale = first_N[:, None, None, None] + within, torch.tensor(1.5, requires_grad=True)
        return cls(query_ND, rows_KD, TwoLayers(D), TwoLayers(D), places_NJG2, shares_NJG2, scale)

    @property
    def learnt(self) -> list[Tensor]:
        tensors = (self.query_ND, self.rows_KD, self.shares_NJG2, self.scale)
        # The last bias of the keys is not read: the loop, which adds it to each key, finds the same without.
        return [*tensors, *list(self.keys.parameters())[:-1], *self.values.parameters()]

    def attend(self, probability: float = 0.0) -> Tensor:
        samples = Samples(self.places_NJG2, self.shares_NJG2, LENGTHS, READ)
        return attend_to_samples(
            self.query_ND, self.rows_KD, samples, self.keys, self.values, H, self.scale, probability
        )

    def naive(self) -> Tensor:
        made = [
            torch.cat([share @ self.rows_KD.unflatten(1, (G, -1))[place, group] for group, (place, share) in parts])
            for n in range(N)
            for j in range(J)
            for parts in [list(enumerate(zip(self.places_NJG2[n, j], self.shares_NJG2[n, j], strict=True)))]
        ]
        samples = torch.stack(made).view(N, J, D)
        hidden = [mlp.first(samples).relu() for mlp in (self.keys, self.values)]
        keys, values = self.keys.second(hidden[0]), self.values.second(hidden[1])
        keys, values = (made.unflatten(-1, (H, -1)) for made in (keys, values))
        query = self.query_ND.unflatten(1, (H, -1))
        weights = (self.scale * torch.einsum("nhd,njhd->nhj", query, keys)).softmax(-1)
        return torch.einsum("nhj,njhd->nhd", weights, values).flatten(1)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_value_and_gradients_equal_those_of_a_loop(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case.random()
    monkeypatch.setattr(torch, "get_num_threads", lambda: count)
    expected, found = case.naive(), case.attend()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    gradients = [torch.autograd.grad(loss(result), case.learnt) for result in (found, expected)]
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)


def test_sums_do_not_depend_on_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    case, found = Case.random(), []
    for count in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=count: count)
        torch.manual_seed(1)
        result = case.attend(0.3)
        found.append([result, *torch.autograd.grad(loss(result), case.learnt)])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_samples_made_for_a_gpu_equal_those_of_a_loop() -> None:
    case = Case.random()
    found = sampled(case.rows_KD, case.places_NJG2.flatten(0, 1), case.shares_NJG2.flatten(0, 1))
    parts = case.rows_KD.unflatten(1, (G, -1))[case.places_NJG2, torch.arange(G)[:, None]]  # (N, J, G, 2, D/G)
    expected = (parts * case.shares_NJG2[..., None]).sum(-2).flatten(2).flatten(0, 1)
    torch.testing.assert_close(found, expected)
    wanted = (case.rows_KD, case.shares_NJG2)
    gradients = [torch.autograd.grad(loss(made), wanted) for made in (found, expected)]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-5)


def test_dropout_keeps_the_mean_and_drops_each_time_something_else() -> None:
    case = Case.random()
    with torch.no_grad():
        # A single sample, of weight 1, whose values pass the second layer as they are, or are left out for its bias.
        only = case._replace(places_NJG2=case.places_NJG2[:, :1], shares_NJG2=case.shares_NJG2[:, :1])
        only.values.second.weight.copy_(torch.eye(D))
        only.values.second.bias.zero_()
        whole = only.attend()
        results = torch.stack([only.attend(0.2) for _ in range(4000)])
        only.values.second.weight.zero_()
        only.values.second.bias.fill_(1)
        shares = torch.stack([only.attend(0.2) for _ in range(4000)])
    kept = results[:, whole > 0.01] / whole[whole > 0.01]
    assert set(kept.unique().mul(100).round().tolist()) <= {0.0, 156.0, 156.25}
    assert (kept != 0).float().mean().item() == pytest.approx(0.64, abs=0.01)
    torch.testing.assert_close(results.mean(0), whole, atol=0.1, rtol=0.1)
    assert set(shares.unique().mul(100).round().tolist()) == {0.0, 125.0}
    assert (shares != 0).float().mean().item() == pytest.approx(0.8, abs=0.01)


def test_nothing_but_the_last_layer_is_learnt() -> None:
    case = Case.random()
    (expected,) = torch.autograd.grad(loss(case.naive()), [case.values.second.weight])
    for tensor in case.learnt[:-2]:
        tensor.requires_grad_(False)
    (found,) = torch.autograd.grad(loss(case.attend()), [case.values.second.weight])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_gradients_with_dropout_are_those_of_what_was_dropped() -> None:
    """Along a direction, the loss changes as its gradient says, when the same is dropped."""
    case = Case.random()

    def value() -> Tensor:
        torch.manual_seed(5)
        return loss(case.attend(0.3)).double()

    gradients = torch.autograd.grad(value(), case.learnt)
    for weight, gradient in zip(case.learnt, gradients, strict=True):
        direction = gradient / gradient.norm().clamp(min=1e-9)
        torch.testing.assert_close(
            slope(value, weight, direction, 1e-3), gradient.norm().double(), atol=5e-3, rtol=5e-2
        )


@pytest.mark.parametrize("name", ["rows_KD", "shares_NJG2", "query_ND"])
def test_what_is_not_finite_shows(name: str) -> None:
    case = Case.random()
    with torch.no_grad():
        getattr(case, name).view(-1)[: D * 2] = torch.nan
        assert case.attend().isnan().any()


def test_half_precision() -> None:
    case = Case.random()
    expected = torch.autograd.grad(loss(case.naive()), case.learnt)
    with torch.autocast("cpu", torch.bfloat16):
        found = case.attend()
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), case.naive(), atol=0.05, rtol=0.05)
    for gradient, other in zip(torch.autograd.grad(loss(found), case.learnt), expected, strict=True):
        assert gradient.dtype == torch.float32
        assert (gradient - other).norm() <= 0.1 * other.norm() + 0.01


def test_halves_are_read_as_the_floats_that_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays_of = sample_attention._arrays
    kinds: set[str] = set()

    def noted(tensors: Sequence[Tensor]) -> Any:
        made = arrays_of(tensors)
        kinds.update(array.dtype.name for array in made)
        return made

    monkeypatch.setattr(sample_attention, "_arrays", noted)
    found = []
    for halves in ((), sample_attention._HALVES):
        assert "int16" not in kinds
        monkeypatch.setattr(sample_attention, "_HALVES", halves)
        case = Case.random()
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16):
            attended = case.attend(0.2)
        found.append([attended, *torch.autograd.grad(loss(attended), case.learnt)])
    assert "int16" in kinds
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_what_is_recomputed_draws_the_same_dropout() -> None:
    values = torch.randn(50, 8, requires_grad=True)
    torch.manual_seed(3)
    recomputing.recomputed(lambda rows: dropout.dropout(rows * rows, 0.5, True), values).sum().backward()
    found, values.grad = values.grad, None
    torch.manual_seed(3)
    dropout.dropout(values * values, 0.5, True).sum().backward()
    assert found is not None
    assert torch.equal(found, values.grad)  # type: ignore[arg-type]
