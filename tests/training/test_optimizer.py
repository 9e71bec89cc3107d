"""BertAdam against the published trajectory and a loop over tensors."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from method.config.flags import make_parser
from method.training.optimizer import DECAYS, BertAdam, Schedule, make_optimizer
from tests.helpers.golden_case import draw
from tests.helpers.paths import GOLDEN
from tests.helpers.small_models import VARIANTS, lively_model


def test_golden_trajectory() -> None:
    w, b = (
        nn.Parameter(torch.from_numpy(draw(f"optim/{name}", shape))) for name, shape in (("w", (5, 3)), ("b", (3,)))
    )
    schedule = Schedule(peak=2.5e-4, warmup=0.1, steps=40)
    optimizer = BertAdam([{"params": [w], "weight_decay": 0.01}, {"params": [b]}], schedule)
    with np.load(GOLDEN / "optimizer.npz") as file:
        trajectory = file["trajectory"]
    for i, expected in enumerate(trajectory):
        w.grad = torch.from_numpy(draw(f"optim/gw{i}", (5, 3))) * (3.0 if i % 2 else 0.1)
        b.grad = torch.from_numpy(draw(f"optim/gb{i}", (3,)))
        optimizer.step()
        ours = torch.cat([w.detach().flatten(), b.detach()])
        np.testing.assert_allclose(ours, expected, atol=1e-7, rtol=0, err_msg=f"step {i}")


class OneByOne:
    """The update rule in double precision, one tensor at a time."""

    def __init__(self) -> None:
        self.m: dict[str, torch.Tensor] = {}
        self.v: dict[str, torch.Tensor] = {}

    def update(self, name: str, w: torch.Tensor, g: torch.Tensor, lr: float, decay: float) -> torch.Tensor:
        w, g = w.double(), g.double()
        if g.norm() > 1:
            g = g / g.norm()
        m = self.m[name] = 0.9 * self.m.get(name, torch.zeros_like(w)) + 0.1 * g
        v = self.v[name] = 0.999 * self.v.get(name, torch.zeros_like(w)) + 0.001 * g * g
        return w - lr * (m / (v.sqrt() + 1e-6) + decay * w)


def test_equals_a_loop_over_tensors() -> None:
    torch.manual_seed(0)
    shapes = {"large": (7, 5), "small": (3,), "scalar": (), "sometimes": (4,)}
    weights = {name: nn.Parameter(torch.randn(shape)) for name, shape in shapes.items()}
    schedule = Schedule(peak=0.01, warmup=0.2, steps=12)
    decay = {"large": 0.05, "small": 0.0, "scalar": 0.05, "sometimes": 0.0}
    groups = [{"params": [weights[name] for name in decay if decay[name] == d], "weight_decay": d} for d in (0.05, 0.0)]
    optimizer, naive = BertAdam(groups, schedule), OneByOne()
    expected = {name: weight.detach().double() for name, weight in weights.items()}
    for step in range(12):
        norms = []
        for name, weight in weights.items():
            weight.grad = None
            if name != "sometimes" or step % 3 == 0:
                weight.grad = torch.randn(weight.shape) * 10.0 ** (step % 4 - 2)
                norms.append(weight.grad.norm())
                lr = schedule.learning_rate(step)
                expected[name] = naive.update(name, expected[name], weight.grad.clone(), lr, decay[name])
        assert optimizer.learning_rate == schedule.learning_rate(step)
        optimizer.step()
        for name, weight in weights.items():
            torch.testing.assert_close(weight.detach().double(), expected[name], atol=1e-6, rtol=1e-5)


def test_each_tensor_is_clipped_separately() -> None:
    large, small = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    large.grad, small.grad = torch.tensor([300.0, 400.0]), torch.tensor([0.3, 0.4])
    optimizer = BertAdam([{"params": [large, small]}], Schedule(peak=1.0, warmup=0.0, steps=10))
    optimizer.step()
    torch.testing.assert_close(optimizer.state[large]["first_moment"], torch.tensor([0.06, 0.08]))
    torch.testing.assert_close(optimizer.state[small]["first_moment"], torch.tensor([0.03, 0.04]))
    assert optimizer.gradient_norm == pytest.approx(math.hypot(500, 0.5))


def test_state_dict_round_trip() -> None:
    def make() -> tuple[nn.Parameter, BertAdam]:
        weight = nn.Parameter(torch.ones(3))
        return weight, BertAdam([{"params": [weight], "weight_decay": 0.1}], Schedule(peak=0.1, warmup=0.1, steps=20))

    whole, stopped, resumed = make(), make(), make()
    for step in range(8):
        gradient = torch.randn(3, generator=torch.Generator().manual_seed(step))
        for weight, optimizer in (whole, stopped if step < 4 else resumed):
            weight.grad = gradient.clone()
            optimizer.step()
        if step == 3:
            resumed[1].load_state_dict(stopped[1].state_dict())
            with torch.no_grad():
                resumed[0].copy_(stopped[0])
    assert torch.equal(whole[0], resumed[0])
    assert whole[1].learning_rate == resumed[1].learning_rate


@pytest.mark.parametrize(("schedule", "expected"), [
    (Schedule(peak=1.0, warmup=0.1, steps=20), {0: 0.0, 1: 0.5, 2: 1.0, 11: 0.5, 19: 1 / 18, 20: 0.0, 25: 0.0}),
    (Schedule(peak=2.0, warmup=0.0, steps=4), {0: 2.0, 1: 1.5, 3: 0.5, 4: 0.0}),
    (Schedule(peak=1.0, warmup=1.0, steps=4), {0: 0.0, 1: 0.25, 3: 0.75}),
    (Schedule(peak=2.5e-4, warmup=0.01, steps=4200), {0: 0.0, 21: 1.25e-4, 42: 2.5e-4, 2121: 1.25e-4, 4200: 0.0}),
    (Schedule(peak=2.0, warmup=0.2, steps=20, decay="cosine"),
     {0: 0.0, 1: 0.5, 4: 2.0, 8: 1 + math.sqrt(0.5), 12: 1.0, 16: 1 - math.sqrt(0.5), 20: 0.0, 25: 0.0}),
    (Schedule(peak=2.0, warmup=0.0, steps=3, decay="cosine"), {0: 2.0, 1: 1.5, 2: 0.5, 3: 0.0}),
    (Schedule(peak=2.0, warmup=0.5, steps=4, decay="constant"), {0: 0.0, 1: 1.0, 2: 2.0, 3: 2.0, 4: 2.0, 9: 2.0}),
], ids=["plain", "no warm-up", "warm-up only", "charades", "cosine", "cosine at once", "constant"])  # fmt: skip
def test_schedule(schedule: Schedule, expected: dict[int, float]) -> None:
    assert {step: schedule.learning_rate(step) for step in expected} == pytest.approx(expected, abs=1e-12)


def test_every_schedule_is_a_choice_of_the_flag() -> None:
    choices = {action.dest: action.choices for action in make_parser("")._actions}
    assert choices["lr_schedule"] == tuple(DECAYS)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_every_weight_is_optimised_once_and_biases_and_norms_do_not_decay(changes: dict[str, object]) -> None:
    model = lively_model(**changes)
    optimizer = make_optimizer(model, Schedule(peak=1.0, warmup=0.1, steps=10), 0.03)
    decays = {id(weight): group["weight_decay"] for group in optimizer.param_groups for weight in group["params"]}
    names = dict(model.named_parameters())
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(names) == len(decays)
    for name, weight in names.items():
        expected = 0.0 if name.endswith("bias") or "norm" in name else 0.03
        assert decays[id(weight)] == expected, name


def test_a_closure_is_refused() -> None:
    optimizer = BertAdam([{"params": [nn.Parameter(torch.ones(1))]}], Schedule(peak=1.0, warmup=0.0, steps=2))
    with pytest.raises(ValueError, match="closure"):
        optimizer.step(lambda: 0.0)
