"""Training steps that a loader feeds as in a training, with the same batch again and again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch.utils.data import Dataset

from benchmarks.measure import DEVICE, as_trained
from benchmarks.step import LAUNCH, make_training
from method.data.batch import EpochBatches, EpochIndices, Loader, VideoBatch
from method.data.edits import NegativeSource
from method.model.retrieval import RetrievalModel

MOST_STEPS = 10_000  # of a loader, which is begun once


class SameBatch(Dataset[VideoBatch]):
    """One batch for any place, each time with other edits of its captions where there is a source of them."""

    def __init__(self, batch: VideoBatch, source: NegativeSource | None) -> None:
        self.batch, self.source = batch, source

    def __getitems__(self, drawn: EpochIndices) -> VideoBatch:
        """The batch, with the edits of the epoch that has the number of the place."""
        if self.source is None:
            return self.batch
        return replace(self.batch, edits=self.source.prepare(self.batch.captions, drawn.indices[0]))


def fed_step(batch: VideoBatch, source: NegativeSource | None, amp: str, workers: int) -> Callable[[], object]:
    """A step of the launch, with the edits of a source in both branches; workers read ahead from one to the next."""
    branches = () if source is None else ("action", "object")
    model = RetrievalModel(replace(LAUNCH, temperatures=branches)).train()
    training = make_training(model, amp, DEVICE, source)
    order = EpochBatches(MOST_STEPS, batch_size=1, seed=0)
    batches = iter(Loader(SameBatch(batch, source), order, workers, pinned=DEVICE.type == "cuda"))
    return as_trained(lambda: training.step(next(batches)), DEVICE)
