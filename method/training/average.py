"""Running average of the weights: what a training with `--ema` evaluates and saves as its model."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from method.model.retrieval import RetrievalModel


class WeightAverage:
    """Exponential moving average of a model's weights (Polyak and Juditsky 1992; Tarvainen and Valpola 2017).

    After update t, counted from 1: average = d * average + (1 - d) * weights with d = min(decay, t / (9 + t)), so that
    the initial weights count for little in a short training.

    model: has the averaged weights, on the device of the one that is trained.
    """

    def __init__(self, model: RetrievalModel, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False)
        self._decay = decay
        self._averages: list[Tensor] = list(self.model.parameters())
        self._weights: list[Tensor] = list(model.parameters())

    @torch.no_grad()
    def update(self, updates: int) -> None:
        """Add the weights to the average; `updates`: how often they have been updated, the last time included."""
        decay = min(self._decay, updates / (9 + updates))
        torch._foreach_lerp_(self._averages, self._weights, 1 - decay)
