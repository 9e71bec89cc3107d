import pytest
import torch
import torch.nn.functional as F

from method import hardware
from method.model.dropout import dropout, dropped_places, relu_dropout


@pytest.mark.parametrize("probability", [0.05, 0.1, 0.9])
def test_places_are_independent_draws(probability: float) -> None:
    """Each place is dropped equally often, and so is each pair of neighbours, as independent draws would."""
    torch.manual_seed(0)
    rounds, count = 4000, 12
    dropped = torch.zeros(rounds, count)
    for row in dropped:
        places = dropped_places(count, probability)
        assert (places.diff() > 0).all()
        row[places] = 1
    spread = 4 * (probability * (1 - probability) / rounds) ** 0.5
    assert (dropped.mean(0) - probability).abs().max() < spread
    pairs = (dropped[:, 1:] * dropped[:, :-1]).mean(0)
    assert (pairs - probability**2).abs().max() < 5 * (probability**2 / rounds) ** 0.5


def test_many_places() -> None:
    torch.manual_seed(0)
    places = dropped_places(10_000_000, 0.05)
    assert places[0] >= 0
    assert places[-1] < 10_000_000
    assert len(places) == pytest.approx(500_000, abs=5 * (10_000_000 * 0.05 * 0.95) ** 0.5)
    assert dropped_places(0, 0.5).tolist() == []


def test_values_and_gradients_go_the_same_way() -> None:
    torch.manual_seed(0)
    values = torch.randn(50, 40, requires_grad=True)
    result = dropout(values, 0.3, training=True)
    kept = result != 0
    torch.testing.assert_close(result[kept], values[kept] / 0.7)
    result.sum().backward()
    torch.testing.assert_close(values.grad, kept / 0.7)


@pytest.mark.parametrize("gpu_style", [False, True])
def test_relu_dropout_is_dropout_of_relu(gpu_style: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "likes_large_kernels", lambda tensor: gpu_style)
    torch.manual_seed(0)
    values = torch.randn(50, 40, requires_grad=True)
    result = relu_dropout(values * 1.0, 0.3, training=True)
    kept = result != 0
    assert 0.25 < kept.float().mean() < 0.45
    torch.testing.assert_close(result[kept], F.relu(values)[kept] / 0.7)
    weights = torch.randn(50, 40)
    (result * weights).sum().backward()
    torch.testing.assert_close(values.grad, kept * weights / 0.7)


def test_nothing_is_dropped_in_evaluation() -> None:
    values = torch.randn(5, 4)
    assert dropout(values, 0.5, training=False) is values
    torch.testing.assert_close(relu_dropout(values.clone(), 0.5, training=False), F.relu(values))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu() -> None:
    values = torch.ones(1000, 100, device="cuda")
    assert dropout(values, 0.2, training=True).mean().item() == pytest.approx(1, abs=0.05)
    values.requires_grad_()
    result = relu_dropout(values * 1.0, 0.2, training=True)
    assert result.mean().item() == pytest.approx(1, abs=0.05)
    result.sum().backward()
    torch.testing.assert_close(values.grad, result)
