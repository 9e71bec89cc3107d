"""The best frame of each video against a loop."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from method.data.ragged import Layout
from method.model.scoring import best_frames

LENGTHS, QUERIES = (5, 1, 9, 128, 2), 37


def by_loop(dots: Tensor, norms: Tensor, layout: Layout) -> list[Tensor]:
    found = []
    for scores in (dots / norms, dots):
        parts = [part[:valid] for part, valid in zip(scores.split(list(layout.lengths)), layout.valid, strict=True)]
        found.append(torch.stack([part.max(0).indices for part in parts]))
    return found


@pytest.mark.parametrize("valid", [None, (3, 1, 8, 100, 1)])
def test_best_frames(valid: tuple[int, ...] | None) -> None:
    torch.manual_seed(0)
    layout = Layout.of(LENGTHS, valid)
    dots, norms = torch.randn(layout.rows, QUERIES), torch.rand(layout.rows, 1) + 0.2
    ties, broken = dots.round(), dots.masked_fill(torch.rand_like(dots) < 0.05, torch.nan)
    for scores, by in ((dots, norms), (ties, torch.ones_like(norms)), (broken, norms)):
        found = best_frames(scores, by, layout)
        assert all(torch.equal(one, other) for one, other in zip(found, by_loop(scores, by, layout), strict=True))
    lowest = torch.full_like(dots, -torch.inf)
    assert all((frames == 0).all() for frames in best_frames(lowest, norms, layout))
