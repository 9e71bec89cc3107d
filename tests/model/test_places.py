"""Rows with the embedding of their places against the layers one after the other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from method.model import places
from method.model.places import placed

ROWS, WIDTH, PLACES = 40, 20, 9


class Case:
    """Rows, places, and layers with random weights."""

    def __init__(self, kind: torch.dtype = torch.float32) -> None:
        torch.manual_seed(0)
        self.rows = (3 * torch.randn(ROWS, WIDTH)).to(kind).requires_grad_()
        self.places = torch.randint(0, PLACES, (ROWS,))
        self.embedding, self.norm = nn.Embedding(PLACES, WIDTH), nn.LayerNorm(WIDTH)
        for weight in self.norm.parameters():
            nn.init.normal_(weight)

    @property
    def learnt(self) -> list[Tensor]:
        return [self.rows, *self.embedding.parameters(), *self.norm.parameters()]

    def placed(self, probability: float = 0.0) -> Tensor:
        return placed(self.rows, self.places, self.embedding, self.norm, probability)

    def naive(self) -> Tensor:
        found: Tensor = self.norm(self.rows.float().relu() + self.embedding(self.places))
        return found

    def gradients(self, result: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad((result * torch.arange(result.numel()).view_as(result).cos()).sum(), self.learnt)


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "_ROWS_OF_A_PART", 7)
    monkeypatch.setattr(torch, "get_num_threads", lambda: request.param)


@pytest.mark.usefixtures("threads")
def test_value_and_gradients_equal_those_of_the_layers() -> None:
    case = Case()
    found, expected = case.placed(), case.naive()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(case.gradients(found), case.gradients(expected), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_halves_are_read_as_the_floats_that_they_are(kind: torch.dtype) -> None:
    case = Case(kind)
    found, expected = case.placed(), case.naive()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    gradients = case.gradients(found)
    assert gradients[0].dtype == kind
    torch.testing.assert_close(gradients, case.gradients(expected), atol=1e-3, rtol=1e-2)


@pytest.mark.usefixtures("threads")
def test_gradients_with_dropout_are_those_of_what_was_kept() -> None:
    case, shown = Case(), Case()
    with torch.no_grad():  # where the norm makes ones of everything, a result shows what dropout does
        shown.norm.weight.zero_()
        shown.norm.bias.fill_(1)
    torch.manual_seed(5)
    kept = shown.placed(0.3).detach()
    torch.testing.assert_close(kept.unique(), torch.tensor([0, 1 / 0.7]))
    torch.manual_seed(5)
    found, expected = case.placed(0.3), case.naive() * kept
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(case.gradients(found), case.gradients(expected), atol=1e-4, rtol=1e-4)


def test_dropout_is_of_each_number_by_itself() -> None:
    case = Case()
    with torch.no_grad():
        case.norm.weight.zero_()
        case.norm.bias.fill_(1)
        kept = torch.stack([case.placed(0.25) > 0 for _ in range(4000)]).float()
    torch.testing.assert_close(kept.mean(0), torch.full((ROWS, WIDTH), 0.75), atol=0.04, rtol=0)
    alone = kept[:, :10].flatten(1) - 0.75
    torch.testing.assert_close(alone.T @ alone / 4000, 0.1875 * torch.eye(10 * WIDTH), atol=0.02, rtol=0)


def test_a_place_without_embedding_is_named() -> None:
    case = Case()
    case.places[3] = PLACES
    with pytest.raises(IndexError, match="place 9 of a row, of 9"):
        case.placed()


def test_what_is_not_finite_stays_in_its_row() -> None:
    case = Case()
    with torch.no_grad():
        case.rows[4, 2] = torch.nan
    found = case.placed()
    assert found[4].isnan().all()
    assert found[[row for row in range(ROWS) if row != 4]].isfinite().all()
    assert case.gradients(found)[0][4].isnan().any()
