import pytest
import torch
import torch.nn.functional as F

from method.ops.cpu import kernels
from method.ops.cpu.dropout import dropout, relu_dropout
from method.runtime import hardware


def dropped_of(count: int, probability: float) -> torch.Tensor:
    return dropout(torch.ones(count), probability, training=True) == 0


@pytest.mark.parametrize("probability", [0.05, 0.1, 0.9])
def test_values_are_dropped_independently(probability: float) -> None:
    """Each value is dropped equally often, and so is each pair of neighbours, as independent draws would."""
    torch.manual_seed(0)
    rounds, count = 4000, 12
    dropped = torch.stack([dropped_of(count, probability) for _ in range(rounds)]).float()
    spread = 4 * (probability * (1 - probability) / rounds) ** 0.5
    assert (dropped.mean(0) - probability).abs().max() < spread
    pairs = (dropped[:, 1:] * dropped[:, :-1]).mean(0)
    assert (pairs - probability**2).abs().max() < 5 * (probability**2 / rounds) ** 0.5


@pytest.mark.parametrize("probability", [0.05, 0.5])
def test_distances_of_many_values_are_geometric(probability: float) -> None:
    torch.manual_seed(0)
    count = 10_000_000
    places = dropped_of(count, probability).nonzero()[:, 0]
    assert len(places) == pytest.approx(count * probability, abs=5 * (count * probability * (1 - probability)) ** 0.5)
    distances = places.diff()
    for distance in (1, 2, 3, 10, 40, 150):
        share = (distances >= distance).float().mean().item()
        expected = (1 - probability) ** (distance - 1)
        assert share == pytest.approx(expected, abs=1e-7 + 5 * (expected * (1 - expected) / len(distances)) ** 0.5)
    for lag in (kernels.VALUES_AT_ONCE, 384, 4096):  # what lies in another stream, or at the same place of another row
        both = torch.isin(places + lag, places).float().mean().item()
        assert both == pytest.approx(probability, abs=5 * (probability / len(places)) ** 0.5)


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


def test_draws_follow_the_seed_and_not_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn(threads: int) -> torch.Tensor:
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
        torch.manual_seed(7)
        return dropped_of(1_000_000, 0.1)

    first = drawn(1)
    assert torch.equal(first, drawn(3))
    assert not torch.equal(first, dropped_of(1_000_000, 0.1))


def test_what_is_not_finite_stays_so() -> None:
    values = torch.full((2000,), torch.nan)
    for result in (dropout(values, 0.1, training=True), relu_dropout(values.clone(), 0.1, training=True)):
        assert result.isnan().float().mean().item() == pytest.approx(0.9, abs=0.05)


def test_nothing_and_views_with_gaps() -> None:
    assert dropout(torch.empty(0, 4), 0.1, training=True).shape == (0, 4)
    values = torch.arange(1.0, 13.0).view(3, 4).t().requires_grad_()
    result = dropout(values, 0.5, training=True)
    kept = result != 0
    torch.testing.assert_close(result, kept * values * 2)
    result.backward(torch.arange(12.0).view(3, 4).t())


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
