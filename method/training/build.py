"""A training at its start, and the batches it trains on, as the options describe them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from method.config.options import loss_weights
from method.data.batch import EpochBatches, Loader, VideoBatch
from method.data.cache.gpu_tables import WithFeatures, on_device
from method.data.dataset import FeatureReader, TrainingVideos
from method.data.edits import NegativeSource
from method.data.splits import Split
from method.model.losses import LossSettings
from method.model.retrieval import RetrievalModel
from method.runtime.processes import SINGLE_PROCESS, Processes
from method.training.loop import LoopSettings, Training
from method.training.optimizer import Schedule


def training_loader(
    options: Mapping[str, Any],
    reader: FeatureReader,
    split: Split,
    order: EpochBatches,
    device: torch.device,
    negatives: NegativeSource | None,
) -> Iterable[VideoBatch]:
    """The batches to train on."""
    workers, pinned = options["num_workers"], options["pin_memory"] and device.type == "cuda"
    if not options["features_on_device"]:
        return Loader(TrainingVideos(reader, split.captions, negatives), order, workers, pinned)
    # Features are gathered on the device, so workers only prepare edits.
    without_features = Loader(
        TrainingVideos(None, split.captions, negatives), order, workers if negatives else 0, pinned
    )
    return WithFeatures(without_features, on_device(reader, split, device))


def make_training(
    options: Mapping[str, Any],
    model: RetrievalModel,
    steps: int,
    device: torch.device,
    negatives: NegativeSource | None = None,
    processes: Processes = SINGLE_PROCESS,
) -> Training:
    """A training at its start; `steps` is the number of steps per epoch."""
    losses = LossSettings(
        weights=loss_weights(options),
        margin=options["margin"],
        hard_pool_size=options["hard_pool_size"],
        label_smoothing=options["neg_loss_label_smoothing"],
    )
    settings = LoopSettings(
        epochs=options["n_epoch"],
        early_stop=options["max_es_cnt"],
        hard_from_epoch=options["hard_negative_start_epoch"],
        grad_clip=options["grad_clip"],
        amp=options["amp"],
        losses=losses,
        seed=options["seed"],
    )
    schedule = Schedule(options["lr"], options["lr_warmup_proportion"], steps * options["n_epoch"])
    return Training(model, settings, schedule, options["wd"], device, negatives, processes)
