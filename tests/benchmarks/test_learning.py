"""Trainings of the naive implementation and of ours differ by chance alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from benchmarks import learning
from tests.helpers.small_dataset import SmallDataset

WITHOUT_CHANCE = (
    *("--no_cross_branch_fusion", "--no_deformable_attn", "--drop", "0", "--input_drop", "0"),
    *("--hard_negative_start_epoch", "0", "--hard_pool_size", "1", "--n_epoch", "5"),
)


@pytest.fixture
def products_as_before() -> Iterator[None]:
    precision = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(precision)


@pytest.mark.usefixtures("products_as_before")
def test_without_chance_both_learn_the_same(shared: SmallDataset) -> None:
    flags = shared.flags(*WITHOUT_CHANCE)
    published, ours = (learning.trained(program, 7, flags) for program in ("published", "fp32"))
    losses = [[sum(row["losses"].values()) for row in of_one.progress.history] for of_one in (published, ours)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0][-1] < 0.8 * losses[0][0]
    assert published.progress.best_sumr == ours.progress.best_sumr


def test_every_training_is_printed(shared: SmallDataset, capsys: pytest.CaptureFixture[str]) -> None:
    learning.main(["--seeds", "2", "--programs", "fp32", "bf16", "--", *shared.flags()])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines[1:5]] == [
        ["seed", seed, program] for seed in "12" for program in ("fp32", "bf16")
    ]
    sumrs = [float(line.split()[3]) for line in lines[1:5]]
    assert f"mean {(sumrs[0] + sumrs[2]) / 2:6.1f}" in lines[5]
    assert "more than fp32" in lines[6]
