"""Training steps compared with the naive implementation of the published program."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from method.config.training_settings import LoopSettings
from method.data.batch import VideoBatch
from method.data.captions import Caption
from method.model.losses import LossSettings
from method.model.published import to_published
from method.model.published_names import published_name
from method.model.retrieval import RetrievalModel
from method.training.loop import Training
from method.training.optimizer import Schedule
from tests.helpers.reference_step import NaiveStep
from tests.helpers.small_models import VARIANTS, lively_model, random_rows, random_streams

STEPS = 24
COMPARED_EVERY = 4
LOSSES = LossSettings(margin=0.2, hard_pool_size=1)
SCHEDULE = Schedule(peak=0.0005, warmup=0.1, steps=STEPS)


def batches(model: RetrievalModel) -> list[VideoBatch]:
    """Three batches of videos of different lengths, with one to three captions each."""
    frames = (([9, 4, 1, 14], [3, 8, 2, 14]), ([6, 6], [6, 2]), ([5, 20, 11], [7, 7, 7]))
    made = []
    for seed, (action, object_) in enumerate(frames):
        labels = torch.arange(len(action)).repeat_interleave(torch.tensor([2, 1, 3, 1][: len(action)]))
        captions = tuple(Caption(f"{video}#enc#{index}", f"{video}", "") for index, video in enumerate(labels.tolist()))
        tokens = random_rows([3 + index % 5 for index in range(len(labels))], model.architecture.query_width, 10 + seed)
        streams = random_streams(model.architecture, action, object_)
        made.append(VideoBatch(tuple(str(v) for v in range(len(action))), streams, captions, tokens, labels))
    return made


@pytest.mark.parametrize("variant", ["deformable-i3d_q-padded", "deformable-double_q-padded", "positions-padded",
                                     "attention-clip_q-valid", "no-fusion"])  # fmt: skip
def test_many_steps_end_at_the_weights_of_the_published_program(variant: str) -> None:
    """Without dropout and with the hardest negatives, training is deterministic.

    The weights are compared after every few steps and made equal again: which negative is the hardest may depend on
    rounding, and every step magnifies the difference.
    """
    model = lively_model(**VARIANTS[variant])
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    naive = NaiveStep(to_published(before, model.architecture), model.architecture, LOSSES, torch.device("cpu"), pool=1)
    settings = LoopSettings(
        epochs=1, early_stop=-1, hard_from_epoch=0, grad_clip=-1.0, amp="off", losses=LOSSES, seed=0
    )
    training = Training(model, settings, SCHEDULE, 0.01, torch.device("cpu"), None)
    model.eval()
    naive.model.eval()
    shown = batches(model)
    losses = []
    for step in range(STEPS):
        batch = shown[step % len(shown)]
        losses.append(sum(training.step(batch).values()))
        assert losses[-1] == pytest.approx(naive.step(batch, SCHEDULE.learning_rate(step)), rel=1e-4), step
        if step % COMPARED_EVERY == COMPARED_EVERY - 1:
            compare_and_equalize(model, naive, before)
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3]), losses


@torch.no_grad()
def compare_and_equalize(model: RetrievalModel, naive: NaiveStep, before: Mapping[str, Tensor]) -> None:
    """Compare how far the weights moved, and give the model those of the published program."""
    for name, weight in model.named_parameters():
        published = naive.model.w(published_name(name, model.architecture))
        moved = (published - before[name]).norm()
        # A key's bias is the same for all that a softmax weighs: what moves it is rounding errors, of either program.
        rounded = 1e-3 if name.endswith(("key.bias", "to_key.second.bias")) else 1e-6
        assert (weight - published).norm() < 0.003 * moved + rounded, name
        weight.copy_(published)
