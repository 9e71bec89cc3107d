"""The distribution of the CPU backend's dropout, which samples the gaps between dropped values."""

import pytest
import torch
import torch.nn.functional as F

from method.ops import VARIABLE, dropout, relu_dropout
from method.ops.cpu.kernels import BLOCK_VALUES


@pytest.fixture(autouse=True)
def _cpu_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "cpu")


def dropped(count: int, probability: float) -> torch.Tensor:
    return dropout(torch.ones(count), probability, training=True) == 0


@pytest.mark.parametrize("probability", [0.05, 0.1, 0.9])
def test_values_are_dropped_independently(probability: float) -> None:
    """Each value is dropped equally often, and so is each pair of neighbours, as independent draws would."""
    torch.manual_seed(0)
    rounds, count = 4000, 12
    masks = torch.stack([dropped(count, probability) for _ in range(rounds)]).float()
    spread = 4 * (probability * (1 - probability) / rounds) ** 0.5
    assert (masks.mean(0) - probability).abs().max() < spread
    pairs = (masks[:, 1:] * masks[:, :-1]).mean(0)
    assert (pairs - probability**2).abs().max() < 5 * (probability**2 / rounds) ** 0.5


@pytest.mark.parametrize("probability", [0.05, 0.5])
def test_gaps_are_geometric(probability: float) -> None:
    torch.manual_seed(0)
    count = 4_000_000
    indices = dropped(count, probability).nonzero()[:, 0]
    assert len(indices) == pytest.approx(count * probability, abs=5 * (count * probability * (1 - probability)) ** 0.5)
    gaps = indices.diff()
    for gap in (1, 2, 3, 10, 40, 150):
        fraction = (gaps >= gap).float().mean().item()
        expected = (1 - probability) ** (gap - 1)
        assert fraction == pytest.approx(expected, abs=1e-7 + 5 * (expected * (1 - expected) / len(gaps)) ** 0.5)
    for lag in (BLOCK_VALUES, 384, 4096):  # a stream, or a row, further on
        both = torch.isin(indices + lag, indices).float().mean().item()
        assert both == pytest.approx(probability, abs=5 * (probability / len(indices)) ** 0.5)


def test_half_precision_drops_the_same() -> None:
    results = []
    for kind in (torch.float32, torch.bfloat16, torch.float16):
        torch.manual_seed(0)
        values = torch.randn(40_000).round().to(kind).requires_grad_()
        torch.manual_seed(1)
        result = relu_dropout(values * 1.0, 0.25, training=True) + dropout(values, 0.25, training=True)
        (gradient,) = torch.autograd.grad(result.sum(), values)
        assert result.dtype == gradient.dtype == kind
        results.append((result.float(), gradient.float()))
    for result, gradient in results[1:]:
        torch.testing.assert_close(result, results[0][0], atol=0.02, rtol=0.01)
        torch.testing.assert_close(gradient, results[0][1], atol=0.02, rtol=0.01)


def test_masks_follow_the_seed_and_not_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def mask(threads: int) -> torch.Tensor:
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
        torch.manual_seed(7)
        return dropped(1_000_000, 0.1)

    first = mask(1)
    assert torch.equal(first, mask(3))
    assert not torch.equal(first, dropped(1_000_000, 0.1))


def test_nothing_is_dropped_in_evaluation() -> None:
    values = torch.randn(5, 4)
    assert dropout(values, 0.5, training=False) is values
    torch.testing.assert_close(relu_dropout(values.clone(), 0.5, training=False), F.relu(values))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE)
    values = torch.ones(1000, 100, device="cuda")
    assert dropout(values, 0.2, training=True).mean().item() == pytest.approx(1, abs=0.05)
    values.requires_grad_()
    result = relu_dropout(values * 1.0, 0.2, training=True)
    assert result.mean().item() == pytest.approx(1, abs=0.05)
    result.sum().backward()
    torch.testing.assert_close(values.grad, result)
