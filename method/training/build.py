"""A training at its start, and the data it trains on."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from method.config.training_settings import TrainingSettings
from method.data.batch import EpochBatches, Loader, VideoBatch
from method.data.cache.gpu_tables import WithFeatures, on_device
from method.data.dataset import FeatureReader, TrainingVideos
from method.data.dataset_files import DatasetFiles, ModelInputs, open_features
from method.data.edits import NegativeSource
from method.data.splits import Split, Splits, load_splits
from method.model.retrieval import RetrievalModel
from method.runtime.processes import SINGLE_PROCESS, Processes
from method.training.loop import Training
from method.training.optimizer import Schedule


def open_splits(files: DatasetFiles, inputs: ModelInputs, settings: TrainingSettings) -> tuple[FeatureReader, Splits]:
    """Open the dataset of a training for a model, and check its splits. InputError for files that do not fit."""
    reader = open_features(files, inputs)
    assert files.caption_train_txt is not None
    assert files.caption_test_txt is not None
    splits = load_splits(
        files.caption_train_txt,
        files.caption_test_txt,
        reader,
        holdout_fraction=settings.holdout_fraction,
        seed=settings.loop.seed,
        max_videos=settings.max_videos,
    )
    return reader, splits


def training_loader(
    settings: TrainingSettings,
    reader: FeatureReader,
    split: Split,
    order: EpochBatches,
    device: torch.device,
    negatives: NegativeSource | None,
) -> Iterable[VideoBatch]:
    """The batches to train on."""
    workers, pinned = settings.workers, settings.pin_memory and device.type == "cuda"
    edits = negatives, settings.loop.edits_from_epoch
    if not settings.features_on_device:
        return Loader(TrainingVideos(reader, split.captions, *edits), order, workers, pinned)
    # Features are gathered on the device, so workers only prepare edits.
    without_features = Loader(TrainingVideos(None, split.captions, *edits), order, workers if negatives else 0, pinned)
    return WithFeatures(without_features, on_device(reader, split, device))


def make_training(
    settings: TrainingSettings,
    model: RetrievalModel,
    steps: int,
    device: torch.device,
    negatives: NegativeSource | None = None,
    processes: Processes = SINGLE_PROCESS,
) -> Training:
    """A training at its start; `steps` is the number of steps per epoch."""
    steps *= settings.loop.epochs
    schedule = Schedule(peak=settings.learning_rate, warmup=settings.warmup, steps=steps, decay=settings.decay)
    return Training(model, settings.loop, schedule, settings.weight_decay, device, negatives, processes)
