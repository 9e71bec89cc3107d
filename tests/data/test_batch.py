"""Batches and the order in which epochs draw them."""

from itertools import chain

import pytest
import torch

from method.data.batch import EpochBatches, Loader
from method.data.dataset import FeatureReader, Queries
from method.data.features import FeatureFile
from tests.helpers.small_dataset import QUERY_WIDTH, STREAMS, SmallDataset


@pytest.fixture
def reader(small: SmallDataset) -> FeatureReader:
    return FeatureReader(FeatureFile(small.features), FeatureFile(small.texts), STREAMS, QUERY_WIDTH, 12, 5)


def test_every_epoch_draws_every_video_once_in_another_order() -> None:
    order = EpochBatches(11, 4, seed=3)
    epochs = []
    for order.epoch in range(3):
        assert all(drawn.epoch == order.epoch for drawn in order)
        batches = [indices for _, indices in order]
        assert [len(batch) for batch in batches] == [4, 4, 3]
        assert len(order) == 3
        assert sorted(index for batch in batches for index in batch) == list(range(11))
        epochs.append(batches)
    assert epochs[0] != epochs[1] != epochs[2]
    order.epoch = 1
    assert [indices for _, indices in order] == epochs[1]
    other = EpochBatches(11, 4, seed=4)
    assert [indices for _, indices in other] != epochs[0]


def test_an_epoch_can_start_at_any_batch() -> None:
    order = EpochBatches(11, 4, seed=3)
    whole = list(order)
    for order.start in range(4):
        assert list(order) == whole[order.start :]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_processes_shard_each_batch_in_order(count: int) -> None:
    whole = list(EpochBatches(11, 4, seed=3))
    orders = [EpochBatches(11, 4, seed=3, rank=rank, count=count) for rank in range(count)]
    for step, drawn in enumerate(zip(*orders, strict=True)):
        shards = [indices if order.shard(step) else [] for (_, indices), order in zip(drawn, orders, strict=True)]
        assert list(chain(*shards)) == whole[step].indices
        assert max(map(len, shards)) - min(map(len, shards)) <= 1
        for (_, indices), own in zip(drawn, shards, strict=True):
            assert indices == (own or whole[step].indices[:1])  # an empty shard gets a dummy


def test_loading_leaves_the_global_generator_alone(small: SmallDataset, reader: FeatureReader) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(Loader(Queries(reader, small.captions()), 3, workers=0, pinned=False))
    assert torch.equal(torch.get_rng_state(), before)
