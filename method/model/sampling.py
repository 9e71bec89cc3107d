"""Linear layers of samples, without making the samples.

A sample joins G groups of channels, each read from two neighbouring rows of its own: a linear layer of it is a sum over
2G rows that the layer's part for their group has already transformed. A row is transformed G times instead of once for
each of the J samples of a frame, and what is left is a sum of rows that lie in the processor's cache.

Letters: K rows that are read, n samples, G groups, D width of a row, O width of a layer, T rows of a table, P of them
summed for a sample.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from method import hardware


class Samples:
    """Samples of rows, each group of channels read from two rows.

    Args:
        rows_KD: rows that are read.
        places_nG2: rows that each group of each sample reads.
        shares_nG2: the share of each.
    """

    def __init__(self, rows_KD: Tensor, places_nG2: Tensor, shares_nG2: Tensor) -> None:
        self._rows_KD, self._places_nG2, self._shares_nG2 = rows_KD, places_nG2, shares_nG2
        self._groups = places_nG2.shape[1]

    def through(self, layer: nn.Linear) -> Tensor:
        """What a linear layer makes of the samples, (n, O)."""
        if hardware.likes_large_kernels(self._rows_KD):  # products are cheap there, sums of scattered rows not
            return F.linear(self.made, layer.weight, layer.bias)
        rows_GKd = self._rows_KD.unflatten(1, (self._groups, -1)).transpose(0, 1)
        layer_GdO = layer.weight.t().unflatten(0, (self._groups, -1))
        return self._sums.of(torch.bmm(rows_GKd, layer_GdO).flatten(0, 1).float(), layer.bias)

    @cached_property
    def _sums(self) -> Sums:
        first_G1 = torch.arange(self._groups, device=self._rows_KD.device)[:, None] * len(self._rows_KD)
        return Sums((self._places_nG2 + first_G1).flatten(1), self._shares_nG2.flatten(1))

    @cached_property
    def made(self) -> Tensor:
        """The samples themselves, (n, D)."""
        table = self._rows_KD.unflatten(1, (self._groups, -1)).flatten(0, 1)  # (K*G, D/G)
        bags = self._places_nG2 * self._groups + torch.arange(self._groups, device=table.device)[:, None]
        shares = self._shares_nG2.to(table.dtype).reshape(-1, 2)
        made = F.embedding_bag(bags.reshape(-1, 2), table, per_sample_weights=shares, mode="sum")
        return made.view(len(bags), -1)


class Sums:
    """Sums of weighted rows of tables.

    Args:
        places_nP: rows of a table that are summed for each sample.
        shares_nP: the weight of each.
    """

    def __init__(self, places_nP: Tensor, shares_nP: Tensor) -> None:
        self.places_nP, self.shares_nP = places_nP, shares_nP

    def of(self, table_TO: Tensor, bias_O: Tensor) -> Tensor:
        """The sums, and a bias added to each, (n, O).

        `torch.nn.functional.embedding_bag`, but for the gradient of the table, which that adds up row by row on one
        thread: here it is a weighted sum of rows as well, gathered for each row of the table.
        """
        sums_nO = F.embedding_bag(self.places_nP, table_TO.detach(), per_sample_weights=self.shares_nP, mode="sum")
        biased: Tensor = _TableGradient.apply(sums_nO, table_TO, bias_O, self)
        return biased

    @cached_property
    def readers(self) -> tuple[Tensor, Tensor, Tensor]:
        """The rows that are read, in ascending order and as often as they are read; by which sample; and its weight."""
        places, order = self.places_nP.flatten().int().sort()
        return places, order // self.places_nP.shape[1], self.shares_nP.detach().flatten()[order]


class _TableGradient(torch.autograd.Function):
    """Adds a bias to sums, in their memory, and passes the gradient to all three, the table of the sums included."""

    @staticmethod
    def forward(ctx: Any, sums_nO: Tensor, table_TO: Tensor, bias_O: Tensor, sums: Sums) -> Tensor:
        ctx.sums, ctx.rows = sums, len(table_TO)
        ctx.mark_dirty(sums_nO)
        return sums_nO.add_(bias_O)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        (gradient_nO,) = gradients
        bias_O = gradient_nO.sum(0) if ctx.needs_input_grad[2] else None
        if not ctx.needs_input_grad[1]:
            return gradient_nO, None, bias_O, None
        places, samples, shares = ctx.sums.readers
        first_T = torch.searchsorted(places, torch.arange(ctx.rows, dtype=torch.int, device=places.device))
        gradient_TO = F.embedding_bag(samples, gradient_nO, first_T, per_sample_weights=shares, mode="sum")
        return gradient_nO, gradient_TO, bias_O, None
