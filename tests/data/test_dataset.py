"""Batches from datasets, and errors in files, which are returned."""

from collections.abc import Sequence

import h5py
import numpy as np
import pytest
import torch

from method.data.batch import EpochBatches, EpochIndices, Loader, QueryBatch, VideoBatch
from method.data.captions import Caption, read_captions
from method.data.dataset import CorpusVideos, FeatureReader, Queries, TrainingVideos
from method.data.edits import EditedQueries, Kind, PreparedEdits
from method.data.features import FeatureFile
from method.data.preprocessing import preprocess_query, preprocess_stream
from method.data.ragged import Ragged
from method.data.splits import split_holdout
from method.runtime.errors import InputError
from tests.helpers.small_dataset import QUERY_WIDTH, STREAMS, SmallDataset


@pytest.fixture
def reader(small: SmallDataset) -> FeatureReader:
    return FeatureReader(FeatureFile(small.features), FeatureFile(small.texts), STREAMS, QUERY_WIDTH, 6, 3)


def test_a_training_batch_has_all_captions_of_its_videos(small: SmallDataset, reader: FeatureReader) -> None:
    captions = read_captions(small.train_txt)
    dataset = TrainingVideos(reader, captions)
    assert len(dataset) == 12
    batch = dataset.__getitems__(EpochIndices(0, [7, 0, 11]))
    assert isinstance(batch, VideoBatch)
    assert batch.video_ids == ("T07", "T00", "T11")
    assert list(batch.captions) == [c for video in batch.video_ids for c in captions if c.video_id == video]
    assert [batch.video_ids[index] for index in batch.labels_Q] == [caption.video_id for caption in batch.captions]
    with h5py.File(small.features, locking=False) as videos, h5py.File(small.texts, locking=False) as texts:
        for branch, key in (("action", "i3d_feat"), ("object", "clip_feat")):
            expected = [preprocess_stream(videos[video][key][()], 6) for video in batch.video_ids]
            assert torch.equal(batch.streams[branch].values, torch.cat(expected))
            assert batch.streams[branch].layout.lengths == tuple(map(len, expected))
            assert max(map(len, expected)) == 6
        expected = [preprocess_query(texts[caption.id][()], 3) for caption in batch.captions]
    assert batch.tokens is not None
    assert torch.equal(batch.tokens.values, torch.cat(expected))
    assert batch.tokens.layout.lengths == tuple(map(len, expected))


def test_a_batch_of_one_video(reader: FeatureReader) -> None:
    batch = TrainingVideos(reader, [Caption("T03#enc#0", "T03", "")]).__getitems__(EpochIndices(0, [0]))
    assert isinstance(batch, VideoBatch)
    assert (batch.video_ids, batch.labels_Q.tolist()) == (("T03",), [0])


def test_corpus_and_queries(small: SmallDataset, reader: FeatureReader) -> None:
    captions = small.captions()
    corpus, queries = CorpusVideos(reader, small.videos_of(small.test_txt)), Queries(reader, captions)
    assert (len(corpus), len(queries)) == (8, len(captions))
    videos, query = corpus.__getitems__([3, 1]), queries.__getitems__([5])
    assert isinstance(videos, VideoBatch)
    assert isinstance(query, QueryBatch)
    assert (videos.video_ids, videos.captions, videos.tokens, videos.labels_Q.tolist()) == (
        ("E03", "E01"),
        (),
        None,
        [],
    )
    assert videos.to(torch.device("cpu")).tokens is None
    assert query.captions == (captions[5],)
    assert torch.equal(query.tokens.values, reader.read_query(captions[5].id))


def test_errors_are_returned_not_raised(small: SmallDataset, reader: FeatureReader) -> None:
    with h5py.File(small.features, "r+") as videos:
        videos["T01/clip_feat"][2, 1] = np.nan
    with h5py.File(small.texts, "r+") as texts:
        texts["T02#enc#0"][0] = np.inf
    training = TrainingVideos(reader, read_captions(small.train_txt))
    assert isinstance(training.__getitems__(EpochIndices(0, [0, 3])), VideoBatch)
    for indices, name in (([0, 1], "'T01/clip_feat' row 2"), ([2, 3], "'T02#enc#0' row 0")):
        mistake = training.__getitems__(EpochIndices(0, indices))
        assert isinstance(mistake, InputError)
        assert name in str(mistake)
    assert isinstance(CorpusVideos(reader, ["T01"]).__getitems__([0]), InputError)
    assert isinstance(Queries(reader, [Caption("T02#enc#0", "T02", "")]).__getitems__([0]), InputError)


class Numbers:
    """A source whose edits are the epoch number; the third epoch raises an error."""

    def count_editable(self) -> dict[Kind, int]:
        return {}

    def prepare(self, captions: Sequence[Caption], epoch: int) -> PreparedEdits:
        if epoch == 2:
            raise InputError("damaged at edit 7")
        rows = Ragged.of([torch.full((1, 1), float(epoch)) for _ in captions])
        return PreparedEdits.of(rows, range(len(captions)), {"action": range(len(captions))})

    def queries(self, prepared: PreparedEdits, device: torch.device) -> dict[Kind, EditedQueries | None]:
        return prepared.with_features(prepared.rows)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("with_features", [False, True])
def test_edits_are_those_of_the_epoch(
    small: SmallDataset, reader: FeatureReader, workers: int, with_features: bool
) -> None:
    """Although workers are persistent; an error of the source is raised like that of a feature file."""
    dataset = TrainingVideos(reader if with_features else None, read_captions(small.train_txt), Numbers())
    order = EpochBatches(12, 5, seed=0)
    loader = Loader(dataset, order, workers, pinned=False)
    for order.epoch in (1, 0):
        for batch in loader:
            assert set(batch.streams) == set(reader.streams if with_features else ())
            assert (batch.tokens is not None) == with_features
            assert batch.edits.rows.values.tolist() == [[order.epoch]] * len(batch.captions)
            assert batch.edits.owner_E.tolist() == list(range(len(batch.captions)))
    order.epoch = 2
    with pytest.raises(InputError, match="damaged at edit 7"):
        next(iter(loader))


def test_holdout_splits_videos() -> None:
    captions = [Caption(f"v{video}#{k}", f"v{video}", "") for k in range(2) for video in range(20)]
    kept, held_out = split_holdout(captions, 0.25, seed=3)
    videos = [{caption.video_id for caption in part} for part in (kept, held_out)]
    assert [len(part) for part in videos] == [15, 5]
    assert not videos[0] & videos[1]
    # Every caption is on the side of its video, in the original order.
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
