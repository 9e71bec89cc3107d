"""Batches and the order in which epochs draw them."""

import h5py
import numpy as np
import pytest
import torch

from method.data.batch import EpochBatches, Loader, VideoBatch, join_queries, join_videos
from method.data.captions import Caption, read_captions
from method.data.dataset import CorpusVideos, FeatureReader, Queries, QueryItem, TrainingVideos, VideoItem, stream_keys
from method.data.features import FeatureFile
from method.errors import InputError
from tests.small_dataset import QUERY_WIDTH, WIDTHS, SmallDataset


@pytest.fixture
def reader(small: SmallDataset) -> FeatureReader:
    streams = stream_keys(WIDTHS["i3d_feat"], WIDTHS["clip_feat"], "clip")
    return FeatureReader(FeatureFile(small.features), FeatureFile(small.texts), streams, QUERY_WIDTH, 12, 5)


def item(name: str, frames: tuple[int, int], words: list[int]) -> VideoItem:
    captions = tuple(Caption(f"{name}#{k}", name, "") for k in range(len(words)))
    queries = tuple(torch.rand(count, 4) for count in words)
    return VideoItem(name, {"action": torch.rand(frames[0], 3), "object": torch.rand(frames[1], 2)}, captions, queries)


def test_join_keeps_everything_in_its_place() -> None:
    items = [item("a", (3, 1), [2, 4]), item("b", (1, 5), [1]), item("c", (2, 2), [3, 3, 3])]
    batch = join_videos(items)
    assert batch.video_ids == ("a", "b", "c")
    assert batch.labels_Q.tolist() == [0, 0, 1, 2, 2, 2]
    assert [caption.id for caption in batch.captions] == ["a#0", "a#1", "b#0", "c#0", "c#1", "c#2"]
    for branch in ("action", "object"):
        rows = batch.streams[branch]
        assert rows.layout.lengths == tuple(len(i.streams[branch]) for i in items)
        assert torch.equal(rows.values, torch.cat([i.streams[branch] for i in items]))
    assert batch.words is not None
    assert torch.equal(batch.words.values, torch.cat([query for i in items for query in i.queries]))
    assert batch.words.layout.lengths == (2, 4, 1, 3, 3, 3)


def test_join_of_one_and_of_none() -> None:
    one = join_videos([item("a", (1, 1), [1])])
    assert one.labels_Q.tolist() == [0]
    searched = join_videos([item("a", (2, 3), []), item("b", (1, 1), [])])
    assert (searched.words, searched.captions, searched.labels_Q.tolist()) == (None, (), [])
    assert searched.to(torch.device("cpu")).video_ids == ("a", "b")
    queries = join_queries([QueryItem(Caption("a#0", "a", "x"), torch.ones(2, 4))])
    assert queries.words.layout.lengths == (2,)


def test_an_epoch_draws_every_video_once_in_an_order_of_its_own() -> None:
    order = EpochBatches(11, 4, seed=3)
    epochs = []
    for order.epoch in range(3):
        batches = list(order)
        assert [len(batch) for batch in batches] == [4, 4, 3]
        assert len(order) == 3
        assert sorted(index for batch in batches for index in batch) == list(range(11))
        epochs.append(batches)
    assert epochs[0] != epochs[1] != epochs[2]
    order.epoch = 1
    assert list(order) == epochs[1]
    other = EpochBatches(11, 4, seed=4)
    assert list(other) != epochs[0]


def test_an_order_is_taken_up_in_the_middle() -> None:
    order = EpochBatches(11, 4, seed=3)
    whole = list(order)
    for order.start in range(4):
        assert list(order) == whole[order.start :]


def test_any_number_of_workers_gives_the_same_batches(small: SmallDataset, reader: FeatureReader) -> None:
    dataset = TrainingVideos(reader, read_captions(small.train_txt))
    passes: list[list[VideoBatch]] = []
    for workers in (0, 2):
        order = EpochBatches(len(dataset), 5, seed=1)
        loader = Loader(dataset, order, workers, pinned=False)
        batches = []
        for order.epoch in (0, 1):
            batches += list(loader)
        passes.append(batches)
    assert len(passes[0]) == len(passes[1]) == 6
    for one, other in zip(*passes, strict=True):
        assert one.video_ids == other.video_ids
        assert one.captions == other.captions
        assert torch.equal(one.streams["action"].values, other.streams["action"].values)
        assert one.words is not None
        assert other.words is not None
        assert torch.equal(one.words.values, other.words.values)


def test_loading_draws_no_random_number_of_the_program(small: SmallDataset, reader: FeatureReader) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(Loader(Queries(reader, small.captions()), 3, workers=0, pinned=False))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_mistake_of_a_worker_is_raised_in_the_main_process(
    small: SmallDataset, reader: FeatureReader, workers: int
) -> None:
    with h5py.File(small.features, "r+") as videos:
        videos["E05/i3d_feat"][1] = np.nan
    loader = Loader(CorpusVideos(reader, small.videos_of(small.test_txt)), 3, workers, pinned=False)
    assert len(loader) == 3
    batches = iter(loader)
    assert next(batches).video_ids == ("E00", "E01", "E02")
    with pytest.raises(InputError, match="'E05/i3d_feat' row 1 holds NaN"):
        next(batches)
