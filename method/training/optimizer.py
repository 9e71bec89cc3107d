"""BertAdam (no bias correction, per-tensor clipping), as published."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from method.runtime import hardware

BETAS = (0.9, 0.999)
EPSILON = 1e-6
TENSOR_CLIP = 1.0
# By name, the learning rate relative to its peak where a share `left` of the steps after the warm-up is left.
DECAYS: dict[str, Callable[[float], float]] = {
    "linear": lambda left: left,
    "cosine": lambda left: (1 - math.cos(math.pi * left)) / 2,
    "constant": lambda left: 1.0,
}


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Linear warm-up, then a decay: 'linear' (published), 'cosine' (Loshchilov and Hutter 2017) or 'constant' for none.

    peak: highest learning rate. warmup: fraction of all steps over which it rises. steps: number of steps in total.
    decay: a key of `DECAYS`.
    """

    peak: float
    warmup: float
    steps: int
    decay: str = "linear"

    def learning_rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0. With a warm-up it is 0 at the first, with a decay past the last.

        >>> for decay in DECAYS:
        ...     schedule = Schedule(peak=1.0, warmup=0.2, steps=20, decay=decay)
        ...     [round(schedule.learning_rate(step), 3) for step in (0, 1, 4, 8, 12, 20)]
        [0.0, 0.25, 1.0, 0.75, 0.5, 0.0]
        [0.0, 0.25, 1.0, 0.854, 0.5, 0.0]
        [0.0, 0.25, 1.0, 1.0, 1.0, 1.0]
        """
        progress = step / self.steps
        if progress < self.warmup:
            return self.peak * progress / self.warmup
        if self.warmup == 1:
            return self.peak
        return self.peak * DECAYS[self.decay](max((1 - progress) / (1 - self.warmup), 0.0))


class BertAdam(torch.optim.Optimizer):
    """Adam without bias correction, with decoupled weight decay and each gradient tensor clipped to norm 1.

    The update is (m / (sqrt(v) + eps) + wd * w) * lr, where lr is the schedule's learning rate after `step` updates.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], schedule: Schedule) -> None:
        super().__init__(groups, {"weight_decay": 0.0})
        self.schedule = schedule
        self._norms: list[Tensor] = []
        for group in self.param_groups:
            group.setdefault("step", 0)

    @property
    def learning_rate(self) -> float:
        """Learning rate of the next step."""
        return self.schedule.learning_rate(self.param_groups[0]["step"])

    @property
    def gradient_norm(self) -> float:
        """Norm of all gradients of the last step together, before clipping per tensor. Synchronizes with the device."""
        return torch.cat(self._norms).norm().item() if self._norms else 0.0

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every weight that has a gradient; gradients are left unchanged."""
        if closure is not None:
            raise ValueError("a closure is not supported")
        self._norms = []
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if weights:
                self._update(weights, group["weight_decay"], self.schedule.learning_rate(group["step"]))
            group["step"] += 1

    def _update(self, weights: list[Tensor], weight_decay: float, learning_rate: float) -> None:
        gradients = self._clipped([weight.grad for weight in weights if weight.grad is not None])
        first = [self._moment(weight, "first_moment") for weight in weights]
        second = [self._moment(weight, "second_moment") for weight in weights]
        torch._foreach_lerp_(first, gradients, 1 - BETAS[0])
        torch._foreach_mul_(second, BETAS[1])
        torch._foreach_addcmul_(second, gradients, gradients, 1 - BETAS[1])
        divisors = torch._foreach_sqrt(second)
        torch._foreach_add_(divisors, EPSILON)
        updates = torch._foreach_div(first, divisors)
        if weight_decay:
            torch._foreach_add_(updates, weights, alpha=weight_decay)
        torch._foreach_add_(weights, updates, alpha=-learning_rate)

    def _clipped(self, gradients: list[Tensor]) -> list[Tensor]:
        """Copies of the gradients, each clipped to norm 1; records the norms before clipping."""
        norms = torch.stack(list(torch._foreach_norm(gradients)))
        self._norms.append(norms)
        factors = (TENSOR_CLIP / (norms + 1e-6)).clamp(max=1.0)
        if norms.device.type == "cpu":
            return torch._foreach_mul(gradients, factors.tolist())  # type: ignore[return-value]
        # One multiplication for all tensors: on a GPU, one launch per tensor would take longer.
        sizes = hardware.to_device_async(torch.tensor([gradient.numel() for gradient in gradients]), factors.device)
        joined = _flatten_dense_tensors(gradients)
        joined *= factors.repeat_interleave(sizes, output_size=len(joined))
        return list(_unflatten_dense_tensors(joined, gradients))

    def _moment(self, weight: Tensor, name: str) -> Tensor:
        state = self.state[weight]
        if name not in state:
            state[name] = torch.zeros_like(weight)
        moment: Tensor = state[name]
        return moment


def make_optimizer(model: nn.Module, schedule: Schedule, weight_decay: float) -> BertAdam:
    """The optimizer of a model's weights, without weight decay for biases and LayerNorms."""
    norms = {id(p) for module in model.modules() if isinstance(module, nn.LayerNorm) for p in module.parameters()}
    decay: list[nn.Parameter] = []
    no_decay: list[nn.Parameter] = []
    for name, weight in model.named_parameters():
        (no_decay if id(weight) in norms or name.endswith("bias") else decay).append(weight)
    return BertAdam([{"params": decay, "weight_decay": weight_decay}, {"params": no_decay}], schedule)
