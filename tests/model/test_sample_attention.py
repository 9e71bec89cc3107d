"""Linear layers of samples against samples that are made one by one."""

import torch
from torch import Tensor

from method.model import recomputing
from method.model.sampling import Samples, Sums


def naive(rows: Tensor, places: Tensor, shares: Tensor, layer: torch.nn.Linear) -> Tensor:
    groups = places.shape[1]
    channels = rows.unflatten(1, (groups, -1))
    made = []
    for place, share in zip(places, shares, strict=True):
        parts = [
            share[group, 0] * channels[place[group, 0], group] + share[group, 1] * channels[place[group, 1], group]
            for group in range(groups)
        ]
        made.append(layer(torch.cat(parts)))
    return torch.stack(made)


def test_value_and_gradients_equal_those_of_a_loop() -> None:
    torch.manual_seed(0)
    rows, layer = torch.randn(9, 12, requires_grad=True), torch.nn.Linear(12, 5)
    places, shares = torch.randint(0, 9, (20, 4, 2)), torch.rand(20, 4, 2, requires_grad=True)
    places[places == 4] = 5  # a row that nothing reads
    samples = Samples(rows, places, shares)
    expected = naive(rows, places, shares, layer)
    weight = torch.randn_like(expected)
    wanted = (rows, shares, *layer.parameters())
    gradients = torch.autograd.grad(expected, wanted, weight)
    assert not gradients[0][4].any()
    for found in (samples.through(layer), layer(samples.made)):  # as a CPU and as a GPU computes it
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(torch.autograd.grad(found, wanted, weight), gradients, atol=1e-5, rtol=1e-5)


def test_a_table_without_gradient_gets_none() -> None:
    table, shares, places = torch.randn(4, 3), torch.rand(2, 2, requires_grad=True), torch.tensor([[0, 1], [3, 3]])
    bias = torch.randn(3)
    sums = Sums(places, shares).of(table, bias)
    torch.testing.assert_close(sums, (shares[..., None] * table[places]).sum(1) + bias)
    sums.sum().backward()
    assert table.grad is None
    assert bias.grad is None
    torch.testing.assert_close(shares.grad, table.sum(1)[places])


def test_what_is_recomputed_draws_the_same_dropout() -> None:
    values = torch.randn(50, 8, requires_grad=True)
    torch.manual_seed(3)
    recomputing.recomputed(lambda rows: torch.nn.functional.dropout(rows * rows, 0.5), values).sum().backward()
    found, values.grad = values.grad, None
    torch.manual_seed(3)
    torch.nn.functional.dropout(values * values, 0.5).sum().backward()
    assert found is not None
    assert torch.equal(found, values.grad)  # type: ignore[arg-type]
