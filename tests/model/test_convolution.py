"""The convolution within sequences against PyTorch's, one sequence after the other."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from method.data.ragged import Layout, Ragged
from method.model.convolution import gelu_of_convolution
from tests.helpers.gradients import loss

WIDTH = 20
LAYOUT = Layout.of([7, 1, 24, 3, 12], [5, 1, 20, 3, 9])


def learnt(taps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, a weight for each tap, and a bias."""
    torch.manual_seed(0)
    shapes = ((LAYOUT.rows, WIDTH), (taps, WIDTH), (WIDTH,))
    return tuple((2 * torch.randn(shape)).requires_grad_() for shape in shapes)  # type: ignore[return-value]


def naive(rows_ND: Tensor, weight_kD: Tensor, bias_D: Tensor) -> Tensor:
    around, convolved = len(weight_kD) // 2, []
    for rows_LD, real in zip(rows_ND.split(LAYOUT.lengths), LAYOUT.real, strict=True):
        mixed = F.conv1d(rows_LD.t()[None], weight_kD.t()[:, None], bias_D, padding=around, groups=WIDTH)
        convolved.append(F.gelu(mixed[0].t())[:real])
    return torch.cat(convolved)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("taps", [1, 3, 7])
def test_value_and_gradients_equal_those_of_a_loop(taps: int, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    rows, weight, bias = inputs = learnt(taps)
    found, expected = gelu_of_convolution(Ragged(rows, LAYOUT), weight, bias), naive(*inputs)
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)
    gradients = [torch.autograd.grad(loss(result), inputs) for result in (found, expected)]
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_halves(kind: torch.dtype) -> None:
    rows, weight, bias = learnt(3)
    rows = rows.detach().to(kind).requires_grad_()
    inputs = (rows, weight, bias)
    found, expected = gelu_of_convolution(Ragged(rows, LAYOUT), weight, bias), naive(rows.float(), weight, bias)
    gradients = [torch.autograd.grad(loss(result.float()), inputs) for result in (found, expected)]
    assert gradients[0][0].dtype == kind
    for one, other in ((found, expected), *zip(*gradients, strict=True)):
        assert (one.float() - other.float()).norm() < 0.01 * other.float().norm()


def test_rows_that_are_not_those_of_the_sequences_are_refused() -> None:
    rows, weight, bias = learnt(3)
    with pytest.raises(ValueError, match="46 rows for sequences of 47 rows"):
        gelu_of_convolution(Ragged(rows[1:], LAYOUT), weight, bias)


def test_what_is_not_finite_stays_so_and_in_its_channel() -> None:
    rows, weight, bias = learnt(3)
    with torch.no_grad():
        rows[0, 0], rows[1, 1] = torch.nan, torch.inf
    found = gelu_of_convolution(Ragged(rows, LAYOUT), weight.abs(), bias)
    assert found[:2, 0].isnan().all()
    assert (found[:3, 1] == torch.inf).all()
    assert found[:, 2:].isfinite().all()
    assert found[5:].isfinite().all()
