"""Self-attention of sequences side by side against one sequence after the other."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from method.data.ragged import Layout
from method.ops.cpu import self_attention as sequence_attention
from method.ops.cpu.self_attention import attend_within
from tests.helpers.gradients import loss, slope

HEADS, WIDTH = 2, 6
CASES = [([5], [5]), ([4, 4], [4, 4]), ([7, 1, 24, 3, 12], [5, 1, 20, 3, 9])]


def projected(layout: Layout) -> Tensor:
    torch.manual_seed(0)
    return (2 * torch.randn(layout.rows, 3 * WIDTH)).requires_grad_()


def naive(projected_NE: Tensor, layout: Layout) -> Tensor:
    attended = []
    for rows_LE, real in zip(projected_NE.split(layout.lengths), layout.real, strict=True):
        query, key, value = (part.unflatten(1, (HEADS, -1)).transpose(0, 1) for part in rows_LE.chunk(3, -1))
        attended.append(
            F.scaled_dot_product_attention(query, key[:, :real], value[:, :real]).transpose(0, 1).flatten(1)
        )
    return torch.cat(attended)


@pytest.mark.parametrize("rows_of_a_box", [1, 30, 2048])
@pytest.mark.parametrize(("lengths", "real"), CASES)
def test_value_and_gradients_equal_those_of_a_loop(
    lengths: list[int], real: list[int], rows_of_a_box: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sequence_attention, "ROWS_OF_A_BOX", rows_of_a_box)
    layout = Layout.of(lengths, real)
    rows = projected(layout)
    found, expected = attend_within(rows, layout, HEADS, 0.0), naive(rows, layout)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    gradients = [torch.autograd.grad(loss(result), rows)[0] for result in (found, expected)]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_halves(kind: torch.dtype) -> None:
    layout = Layout.of(*CASES[2])
    rows = projected(layout).detach().to(kind).requires_grad_()
    found, expected = attend_within(rows, layout, HEADS, 0.0), naive(rows.float(), layout)
    assert found.dtype == kind
    gradients = [torch.autograd.grad(loss(result.float()), rows)[0].float() for result in (found, expected)]
    for one, other in ((found.float(), expected), gradients):
        assert (one - other).norm() < 0.01 * other.norm()


def test_what_is_dropped_depends_on_neither_boxes_nor_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Layout.of([40, 8, 30, 64], [33, 8, 30, 50])
    rows, results = projected(layout), []
    for rows_of_a_box, threads in ((2048, 1), (2048, 3), (1, 2)):
        monkeypatch.setattr(sequence_attention, "ROWS_OF_A_BOX", rows_of_a_box)
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        torch.manual_seed(1)
        result = attend_within(rows, layout, HEADS, 0.3)
        results.append([result, *torch.autograd.grad(loss(result), rows)])
    for other in results[1:]:
        torch.testing.assert_close(results[0], other)


def test_dropout_is_of_each_weight_by_itself() -> None:
    """With equal logits and values that say which row they are of, a result is the sum of what was kept."""
    layout = Layout.of([8] * 6, [8, 8, 8, 8, 8, 5])
    rows = torch.zeros(layout.rows, 3 * 8)
    rows[:, 16:] = torch.eye(8).repeat(6, 1)
    torch.manual_seed(0)
    kept = torch.stack([attend_within(rows, layout, 1, 0.25) for _ in range(3000)]).view(-1, 6, 8, 8)
    assert (kept[:, 5, :, 5:] == 0).all()
    whole = kept[:, :5] * 8 * 0.75
    torch.testing.assert_close(whole, whole.round(), atol=1e-5, rtol=0)
    assert whole.max() < 1.5
    torch.testing.assert_close(whole.mean(0), torch.full((5, 8, 8), 0.75), atol=0.04, rtol=0)
    alone = whole.flatten(1) - 0.75
    together = alone.T @ alone / len(alone)
    torch.testing.assert_close(together, torch.eye(320) * 0.1875, atol=0.02, rtol=0)


def test_gradients_with_dropout_are_those_of_what_was_dropped() -> None:
    """Along a direction, the loss changes as its gradient says, when the same is dropped."""
    layout = Layout.of([7, 3, 12], [5, 3, 9])
    rows = projected(layout)

    def value() -> Tensor:
        torch.manual_seed(5)
        return loss(attend_within(rows, layout, HEADS, 0.3)).double()

    (gradient,) = torch.autograd.grad(value(), rows)
    found = slope(value, rows, gradient / gradient.norm(), 1e-2)
    assert found.item() == pytest.approx(gradient.norm().item(), rel=1e-3)


def test_what_is_not_finite_stays_so_and_in_its_sequence() -> None:
    layout = Layout.of([5, 3])
    rows = projected(layout)
    with torch.no_grad():
        rows[1, 0] = torch.nan
    found = attend_within(rows, layout, HEADS, 0.0)
    assert found[1, : WIDTH // HEADS].isnan().all()
    assert found[0].isfinite().all()
    assert found[5:].isfinite().all()
    (gradient,) = torch.autograd.grad(found.sum(), rows)
    assert gradient[1].isnan().any()
    assert gradient[5:].isfinite().all()


def test_rows_that_are_not_those_of_the_sequences_are_refused() -> None:
    with pytest.raises(ValueError, match="16 rows for sequences of 15 rows"):
        attend_within(torch.zeros(16, 3 * WIDTH), Layout.of([5, 10]), HEADS, 0.0)


def test_extreme_logits_choose_one_row() -> None:
    layout = Layout.of([4])
    rows = projected(layout).detach()
    rows[:, : 2 * WIDTH] *= 1e4
    found = attend_within(rows, layout, HEADS, 0.0)
    torch.testing.assert_close(found, naive(rows, layout))
