"""The running average of the weights: its formula, what is evaluated and saved, skipped steps, and resuming."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from method.config.training_settings import LoopSettings
from method.model.losses import LossSettings
from method.runtime.errors import InputError
from method.runtime.files import read_json, write_json
from method.training.average import WeightAverage
from method.training.checkpoint_file import read_checkpoint, write_checkpoint
from method.training.loop import TRAINED, Training
from method.training.optimizer import Schedule
from tests.helpers.runs import EPOCHS, STEPS, Crash, Interruption, assert_same_run, crash, same_content
from tests.helpers.small_dataset import SmallDataset, history, metrics, run_evaluate, run_train
from tests.helpers.small_models import lively_model

DECAY = 0.25  # reached by the warm-up in the third update

Weights = dict[str, torch.Tensor]


def test_the_average_of_given_weights() -> None:
    model = lively_model()
    average = WeightAverage(model, 0.2)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    values = [4.0, -1.0, 2.0, 0.5]
    shares = [1 / 10, 2 / 11, 0.2, 0.2]  # of the average before: t / (9 + t), at most the decay
    expected = {name: weight.double() for name, weight in before.items()}
    for updates, (value, share) in enumerate(zip(values, shares, strict=True), start=1):
        with torch.no_grad():
            for weight in model.parameters():
                weight.fill_(value)
        average.update(updates)
        expected = {name: share * weight + (1 - share) * value for name, weight in expected.items()}
        for name, weight in average.model.state_dict().items():
            torch.testing.assert_close(weight.double(), expected[name], atol=1e-6, rtol=1e-6)
    assert all(weight.unique() == 0.5 for weight in model.state_dict().values())
    assert not any(weight.requires_grad for weight in average.model.parameters())


def test_a_step_that_the_scaler_skips_leaves_the_average() -> None:
    losses = LossSettings()
    settings = LoopSettings(
        epochs=2, early_stop=-1, hard_from_epoch=0, grad_clip=-1.0, amp="fp16", losses=losses, seed=0, ema=0.5
    )
    training = Training(lively_model(), settings, Schedule(peak=1, warmup=0, steps=9), 0, torch.device("cpu"), None)
    scaler = torch.amp.GradScaler("cpu")
    before = {name: weight.clone() for name, weight in training.evaluated.state_dict().items()}
    for value, changes in ((torch.inf, False), (1.0, True)):
        for weight in training.model.parameters():
            weight.grad = torch.full_like(weight, value)
        scaler.scale(torch.zeros(()))
        scaler.step(training.optimizer)
        scaler.update()
        assert same_content(training.evaluated.state_dict(), before) != changes


@pytest.fixture(scope="module")
def averaged(shared: SmallDataset) -> tuple[Path, list[Weights]]:
    """An uninterrupted run, and the weights after each of its steps, with the initial ones first."""
    trajectory: list[Weights] = []
    step = Training.step

    def recorded(training: Training, batch: Any) -> dict[str, float]:
        if not trajectory:
            trajectory.append({name: weight.clone() for name, weight in training.model.state_dict().items()})
        terms = step(training, batch)
        trajectory.append({name: weight.clone() for name, weight in training.model.state_dict().items()})
        return terms

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "step", recorded)
        return run_train(flags(shared, "averaged")), trajectory


def flags(shared: SmallDataset, name: str) -> list[str]:
    return shared.flags("--ema", str(DECAY), "--n_epoch", str(EPOCHS), "--description", name)


def test_the_average_is_evaluated_and_saved(
    averaged: tuple[Path, list[Weights]], finished: Path, shared: SmallDataset
) -> None:
    run, trajectory = averaged
    expected = trajectory[0]
    by_epoch = []
    for updates, weights in enumerate(trajectory[1:], start=1):
        share = min(DECAY, updates / (9 + updates))
        expected = {name: share * own + (1 - share) * weights[name] for name, own in expected.items()}
        by_epoch += [expected] if updates % STEPS == 0 else []
    last, best = read_checkpoint(run / "last.ckpt"), read_checkpoint(run / "model.ckpt")
    for found, wanted in ((last["model"], by_epoch[-1]), (best["model"], by_epoch[best["epoch"]])):
        for name, weight in wanted.items():
            torch.testing.assert_close(found[name], weight, atol=1e-6, rtol=1e-5)
    assert same_content(last[TRAINED], trajectory[-1])
    # The training itself is that of a run without an average.
    assert same_content(last[TRAINED], read_checkpoint(finished / "last.ckpt")["model"])
    evaluated = run_evaluate(["--eval_ckpt", str(run / "last.ckpt"), "--device", "-1"])
    assert metrics(evaluated) == history(run)[-1]["metrics"]
    assert metrics(run) == history(run)[best["epoch"]]["metrics"]


@pytest.mark.parametrize("step", [0, 1, 7])
def test_resumed_to_the_last_bit(
    averaged: tuple[Path, list[Weights]], shared: SmallDataset, interrupt: Interruption, step: int
) -> None:
    name = f"averaged {step}"
    interrupt.at(step, crash)
    with pytest.raises(Crash):
        run_train([*flags(shared, name), "--save_every_steps", "1"])
    interrupt.over()
    run = run_train(["--resume", str(shared.results / name), "--device", "-1"])
    assert_same_run(run, averaged[0])
    ours, theirs = (read_checkpoint(folder / "last.ckpt")[TRAINED] for folder in (run, averaged[0]))
    assert same_content(ours, theirs)


def test_a_run_without_an_average_does_not_get_one(finished: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    options = read_json(run / "opt.json")
    write_json(
        run / "opt.json", {name: value for name, value in options.items() if name != "ema"}
    )  # an earlier version
    with pytest.raises(InputError, match=r"a resumed run must keep its options: --ema was 0\.0, is 0\.5$"):
        run_train(["--resume", str(run), "--device", "-1", "--n_epoch", "9", "--ema", "0.5"])


@pytest.mark.parametrize("weights", [None, {}, "x", {"a": 1}], ids=str)
def test_a_state_without_the_trained_weights_is_refused(
    averaged: tuple[Path, list[Weights]], tmp_path: Path, weights: object
) -> None:
    run = Path(shutil.copytree(averaged[0], tmp_path / "run"))
    state = read_checkpoint(run / "last.ckpt")
    write_checkpoint(run / "last.ckpt", {**state, TRAINED: weights})
    with pytest.raises(InputError, match=r"last\.ckpt: (cannot resume from this state|weights do not fit the model)"):
        run_train(["--resume", str(run), "--device", "-1", "--n_epoch", "9"])
