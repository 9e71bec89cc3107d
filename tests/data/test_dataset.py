"""What a data worker hands over: a video, its captions, or the mistake that reading one met."""

from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch

from method.data.captions import Caption, read_captions
from method.data.dataset import (
    CorpusVideos,
    FeatureReader,
    Queries,
    QueryItem,
    TrainingVideos,
    VideoItem,
    split_holdout,
    stream_keys,
)
from method.data.features import FeatureFile, preprocess_query, preprocess_stream
from method.errors import InputError
from tests.small_dataset import QUERY_WIDTH, WIDTHS, SmallDataset


@pytest.fixture
def reader(small: SmallDataset) -> FeatureReader:
    streams = stream_keys(WIDTHS["i3d_feat"], WIDTHS["clip_feat"], "clip")
    return FeatureReader(FeatureFile(small.features), FeatureFile(small.texts), streams, QUERY_WIDTH, 6, 3)


def test_stream_of_each_branch() -> None:
    assert stream_keys(10, 6, "clip") == {"action": ("i3d_feat", 10), "object": ("clip_feat", 6)}
    assert stream_keys(10, 10, "i3d") == {"action": ("i3d_feat", 10), "object": ("i3d_feat", 10)}
    assert stream_keys(10, None, "clip") == {"action": ("i3d_feat", 10)}
    assert stream_keys(None, 6, "clip") == {"object": ("clip_feat", 6)}


def test_a_training_item_is_a_video_with_all_its_captions(small: SmallDataset, reader: FeatureReader) -> None:
    captions = read_captions(small.train_txt)
    dataset = TrainingVideos(reader, captions)
    assert len(dataset) == 12
    seen: list[Caption] = []
    with h5py.File(small.features, locking=False) as videos, h5py.File(small.texts, locking=False) as texts:
        for index in range(len(dataset)):
            item = dataset[index]
            assert isinstance(item, VideoItem)
            for branch, key in (("action", "i3d_feat"), ("object", "clip_feat")):
                expected = preprocess_stream(videos[item.video_id][key][()], 6)
                assert torch.equal(item.streams[branch], expected)
                assert len(expected) <= 6
            for caption, query in zip(item.captions, item.queries, strict=True):
                assert caption.video_id == item.video_id
                assert torch.equal(query, preprocess_query(texts[caption.id][()], 3))
            seen += item.captions
    assert seen == captions


def test_corpus_and_queries(small: SmallDataset, reader: FeatureReader) -> None:
    captions = small.captions()
    corpus, queries = CorpusVideos(reader, small.videos_of(small.test_txt)), Queries(reader, captions)
    assert (len(corpus), len(queries)) == (8, len(captions))
    video, query = corpus[3], queries[5]
    assert isinstance(video, VideoItem)
    assert isinstance(query, QueryItem)
    assert (video.video_id, video.captions, video.queries) == ("E03", (), ())
    assert query.caption == captions[5]
    assert torch.equal(query.query, reader.read_query(captions[5].id))


def test_mistakes_are_handed_over_not_raised(small: SmallDataset, reader: FeatureReader) -> None:
    with h5py.File(small.features, "r+") as videos:
        videos["T01/clip_feat"][2, 1] = np.nan
    with h5py.File(small.texts, "r+") as texts:
        texts["T02#enc#0"][0] = np.inf
    training = TrainingVideos(reader, read_captions(small.train_txt))
    assert isinstance(training[0], VideoItem)
    for item, name in ((training[1], "'T01/clip_feat' row 2"), (training[2], "'T02#enc#0' row 0")):
        assert isinstance(item, InputError)
        assert name in str(item)
    assert isinstance(CorpusVideos(reader, ["T01"])[0], InputError)
    assert isinstance(Queries(reader, [Caption("T02#enc#0", "T02", "")])[0], InputError)


def test_the_stream_that_no_branch_sees_is_not_read(small: SmallDataset, reader: FeatureReader) -> None:
    with h5py.File(small.features, "r+") as videos:
        del videos["T01/clip_feat"]
    action_only = replace(reader, streams=stream_keys(10, None, "clip"))
    assert set(action_only.read_video("T01")) == {"action"}


def test_holdout_divides_the_videos() -> None:
    captions = [Caption(f"v{video}#{k}", f"v{video}", "") for k in range(2) for video in range(20)]
    kept, held_out = split_holdout(captions, 0.25, seed=3)
    videos = [{caption.video_id for caption in part} for part in (kept, held_out)]
    assert [len(part) for part in videos] == [15, 5]
    assert not videos[0] & videos[1]
    # Every caption is on its video's side, in the old order.
    for part, own in zip((kept, held_out), videos, strict=True):
        assert part == [caption for caption in captions if caption.video_id in own]
    assert split_holdout(captions, 0.25, seed=3) == (kept, held_out)
    assert split_holdout(captions, 0.25, seed=4) != (kept, held_out)
    assert split_holdout(captions, 0.0, seed=3) == (captions, [])


@pytest.mark.parametrize("fraction", [0.01, 0.99])
def test_holdout_leaves_no_side_empty(fraction: float) -> None:
    captions = [Caption(f"v{video}#0", f"v{video}", "") for video in range(20)]
    with pytest.raises(InputError, match=f"--holdout_fraction {fraction}: holds out (0|20) of 20 training videos"):
        split_holdout(captions, fraction, seed=0)
