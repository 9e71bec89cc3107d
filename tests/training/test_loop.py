"""When training ends, and that a non-finite loss stops it before the update."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch

from method.config.training_settings import LoopSettings
from method.data.captions import read_captions
from method.model.losses import LossSettings
from method.runtime.errors import InputError
from method.training.batch_losses import training_losses
from method.training.checkpoint_file import read_checkpoint
from method.training.loop import Training
from method.training.optimizer import Schedule
from tests.helpers.runs import same_content
from tests.helpers.small_dataset import SmallDataset, run_train
from tests.helpers.small_models import lively_model


def training(early_stop: int, epochs: int = 100) -> Training:
    losses = LossSettings()
    settings = LoopSettings(
        epochs=epochs, early_stop=early_stop, hard_from_epoch=20, grad_clip=-1.0, amp="off", losses=losses, seed=0
    )
    schedule = Schedule(peak=0.01, warmup=0.1, steps=300)
    return Training(lively_model(), settings, schedule, 0.01, torch.device("cpu"), None)


@pytest.mark.parametrize(("early_stop", "sumr", "best", "stops_after"), [
    (1, [5, 4, 3, 9, 9], 0, 2),
    (1, [5, 4, 5, 4, 3, 9], 2, 4),  # a tie counts as better and resets the patience
    (2, [5, 4, 3, 2, 9], 0, 3),
    (0, [5, 6, 5, 9], 1, 2),
    (-1, [5, 4, 3, 2, 1, 0], 0, None),
    (10, [5, 5, 5], 2, None),
])  # fmt: skip
def test_early_stop(early_stop: int, sumr: list[float], best: int, stops_after: int | None) -> None:
    run = training(early_stop)
    over = []
    for value in sumr:
        if run.is_over:
            break
        better = run.finish_epoch({"a": 1.0}, {"fused": {"sumr": value}})
        assert better == (run.progress.best_epoch == run.progress.epoch - 1)
        over.append(run.is_over)
    assert run.progress.best_epoch == best
    assert over == [False] * (len(over) - 1) + [stops_after is not None]
    if stops_after is not None:
        assert len(over) == stops_after + 1


def test_epochs_end() -> None:
    run = training(-1, epochs=2)
    for _ in range(2):
        assert not run.is_over
        run.finish_epoch({}, {"fused": {"sumr": 1.0}})
    assert run.is_over


# Non-finite losses


@pytest.mark.parametrize(("term", "value"), [("action/triplet", math.nan), ("object/nce", math.inf)])
def test_a_non_finite_loss_stops_before_the_update(
    shared: SmallDataset, monkeypatch: pytest.MonkeyPatch, term: str, value: float
) -> None:
    count = itertools.count()
    seen: list[dict[str, torch.Tensor]] = []
    name = f"{term.replace('/', ' ')} {value}"

    def losses(model: Any, *arguments: Any) -> dict[str, torch.Tensor]:
        terms = training_losses(model, *arguments)
        if next(count) == 4:
            seen.append({key: weight.clone() for key, weight in model.state_dict().items()})
            seen.append(model.state_dict())
            terms[term] = terms[term] * value
        return terms

    monkeypatch.setattr("method.training.step.training_losses", losses)
    expected = rf"epoch 1 step 1: the loss is not finite \(.*{term} {value}.*\); captions of the batch: T\d\d#enc#\d; "
    with pytest.raises(InputError, match=expected + ".*; and .* more; nothing was updated$") as caught:
        run_train(shared.flags("--description", name))
    run = shared.results / name
    assert same_content(*seen)
    progress = read_checkpoint(run / "last.ckpt")["progress"]
    assert (progress["epoch"], progress["step"]) == (1, 0)
    listed = next(line for line in (run / "train.log").read_text().splitlines() if "captions of the batch" in line)
    ids = listed.split("captions of the batch: ")[1].split()
    assert set(ids) <= {caption.id for caption in read_captions(shared.train_txt)}
    assert len(ids) > 5
    assert str(caught.value).split("captions of the batch: ")[1].startswith("; ".join(ids[:5]))

    monkeypatch.undo()
    assert run_train(["--resume", str(run), "--device", "-1"]) == run
