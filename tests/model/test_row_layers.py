"""Layers that work through pieces of rows against the same layers on all rows at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from method.ops.cpu import feed_forward as row_layers
from method.ops.cpu.feed_forward import feed_forward

ROWS, WIDTH, HIDDEN, OUT = 40, 24, 36, 20
P = 0.3


class Layers(NamedTuple):
    """The layers of both functions, with random weights and biases, and rows for them."""

    rows: Tensor
    first: nn.Module
    second: nn.Linear
    run: Callable[[Tensor, float], Tensor]

    @property
    def learnt(self) -> list[Tensor]:
        return [self.rows, *self.first.parameters(), *self.second.parameters()]

    def between(self) -> Tensor:
        """What dropout is applied to."""
        made: Tensor = self.first(self.rows)
        return made.relu()

    def gradients(self, result: Tensor, learnt: Sequence[Tensor] | None = None) -> tuple[Tensor, ...]:
        weights = torch.arange(result.numel()).view_as(result).cos()
        return torch.autograd.grad((result * weights).sum(), learnt or self.learnt)

    def mask(self) -> Tensor:
        """What dropout multiplies with after seed 5: seen where the layer behind it changes nothing."""
        width = self.second.in_features
        plain, shows = nn.Linear(self.rows.shape[1], width), nn.Linear(width, width)
        with torch.no_grad():
            shows.weight.copy_(torch.eye(width))
            shows.bias.zero_()
            torch.manual_seed(5)
            plain.weight.zero_()
            plain.bias.fill_(1)
            return feed_forward(self.rows, plain, shows, P)


def layers_of(name: str, rows: int = ROWS) -> Layers:
    torch.manual_seed(0)
    inner, outer = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, OUT)
    made = Layers(
        torch.randn(rows, WIDTH, requires_grad=True),
        inner,
        outer,
        lambda values, probability: feed_forward(values, inner, outer, probability),
    )
    with torch.no_grad():
        for weight in (*made.first.parameters(), *made.second.parameters()):
            weight.normal_()
    return made


both = pytest.mark.parametrize("name", ["feed_forward"])


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three pieces, the last of them not full."""
    monkeypatch.setattr(row_layers, "ROWS_OF_A_PIECE", 16)


def assert_near(found: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float = 1e-5) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert (one - other).norm() / other.norm() <= tolerance


@both
def test_value_and_gradients_are_those_of_the_layers(name: str) -> None:
    layers = layers_of(name)
    found, expected = layers.run(layers.rows, 0.0), layers.second(layers.between())
    assert_near([found], [expected])
    assert_near(layers.gradients(found), layers.gradients(expected))


@both
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_gradients_are_those_of_what_was_kept(name: str, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    layers = layers_of(name)
    mask = layers.mask()
    assert 0.2 < (mask == 0).float().mean() < 0.4
    torch.testing.assert_close(mask[mask != 0], torch.full_like(mask[mask != 0], 1 / (1 - P)))
    torch.manual_seed(5)
    found, expected = layers.run(layers.rows, P), layers.second(layers.between() * mask)
    assert_near([found], [expected])
    assert_near(layers.gradients(found), layers.gradients(expected))


@both
def test_sums_do_not_depend_on_the_number_of_threads(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layers, found = layers_of(name), []
    for threads in (1, 4):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        torch.manual_seed(2)
        result = layers.run(layers.rows, P)
        found.append([result, *layers.gradients(result)])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@both
def test_values_are_dropped_independently(name: str) -> None:
    layers = layers_of(name, rows=3000)
    dropped = (layers.mask() == 0).float()
    spread = 5 * (P * (1 - P) / len(dropped)) ** 0.5
    assert (dropped.mean(0) - P).abs().max() < spread
    for other in (dropped[:, 1:] * dropped[:, :-1], dropped[1:] * dropped[:-1], dropped[16:] * dropped[:-16]):
        assert (other.mean(0) - P**2).abs().max() < spread


@both
def test_half_precision(name: str) -> None:
    layers = layers_of(name)
    expected = layers.second(layers.between())
    with torch.autocast("cpu", torch.bfloat16):
        found = layers.run(layers.rows, 0.0)
    assert found.dtype == torch.bfloat16
    assert_near([found.float()], [expected], 0.05)
    assert_near(layers.gradients(found), layers.gradients(expected), 0.05)
    with torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(5)
        found = layers.run(layers.rows, P)
    expected = layers.second(layers.between() * layers.mask())
    assert_near([found.float()], [expected], 0.05)
    assert_near(layers.gradients(found), layers.gradients(expected), 0.05)


@both
def test_no_rows(name: str) -> None:
    layers = layers_of(name, rows=0)
    result = layers.run(layers.rows, P)
    assert result.shape == (0, OUT)
    assert all(not gradient.any() for gradient in layers.gradients(result))


@both
def test_rows_that_lie_apart(name: str) -> None:
    layers = layers_of(name)
    apart = layers.rows.detach().t().contiguous().t()
    torch.testing.assert_close(layers.run(apart, 0.0), layers.run(layers.rows, 0.0))


@both
def test_what_is_not_finite_shows(name: str) -> None:
    layers = layers_of(name)
    rows = layers.rows.detach().clone()
    rows[3, 5] = torch.nan
    result = layers.run(rows, P)
    assert result[3].isnan().all()
    assert result[:3].isfinite().all()
    assert result[4:].isfinite().all()
    assert any(gradient.isnan().any() for gradient in layers.gradients(result, list(layers.first.parameters())))
