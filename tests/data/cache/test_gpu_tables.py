"""Features in the memory of a device give the same batches as the feature files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from method.data.batch import EpochBatches, Loader, VideoBatch
from method.data.cache import gpu_tables
from method.data.cache.feature_cache import with_cache
from method.data.cache.gpu_tables import WithFeatures, free_memory, on_device
from method.data.dataset import FeatureReader, TrainingVideos
from method.data.features import FeatureFile
from method.data.splits import Split, check_split
from method.runtime.errors import InputError
from tests.helpers.runs import EPOCHS, assert_same_run
from tests.helpers.small_dataset import QUERY_WIDTH, STREAMS, SmallDataset, run_train

CPU = torch.device("cpu")


def open_split(small: SmallDataset, sees: str = "clip") -> tuple[FeatureReader, Split]:
    streams = STREAMS if sees == "clip" else dict.fromkeys(STREAMS, STREAMS["action"])
    reader = FeatureReader(FeatureFile(small.features), FeatureFile(small.texts), streams, QUERY_WIDTH, 6, 3)
    return reader, check_split("training split", small.train_txt, reader)


def batches(reader: FeatureReader, split: Split) -> list[VideoBatch]:
    order = EpochBatches(12, 5, seed=3)
    return list(Loader(TrainingVideos(reader, split.captions), order, 0, pinned=False))


def batches_on_device(reader: FeatureReader, split: Split) -> list[VideoBatch]:
    bare = Loader(TrainingVideos(None, split.captions), EpochBatches(12, 5, seed=3), 0, pinned=False)
    return list(WithFeatures(bare, reader))


@pytest.mark.parametrize("sees", ["clip", "i3d"])
@pytest.mark.parametrize("cached", [False, True])
def test_the_same_batches(small: SmallDataset, sees: str, cached: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_tables, "_ITEMS_PER_BATCH", 5)
    reader, split = open_split(small, sees)
    source = with_cache(reader, [split], None, 0) if cached else reader
    for ours, theirs in zip(
        batches_on_device(on_device(source, split, CPU), split), batches(reader, split), strict=True
    ):
        assert (ours.video_ids, ours.captions) == (theirs.video_ids, theirs.captions)
        assert torch.equal(ours.labels_Q, theirs.labels_Q)
        assert ours.tokens is not None
        assert theirs.tokens is not None
        for one, other in [
            (ours.tokens, theirs.tokens),
            *((ours.streams[b], theirs.streams[b]) for b in theirs.streams),
        ]:
            assert torch.equal(one.values, other.values)
            assert (one.layout.lengths, one.layout.longest) == (other.layout.lengths, other.layout.longest)
            assert torch.equal(one.layout.owner_N, other.layout.owner_N)
            assert torch.equal(one.layout.position_N, other.layout.position_N)


def test_feature_files_are_no_longer_read(small: SmallDataset) -> None:
    reader, split = open_split(small)
    expected = batches(reader, split)
    loaded = on_device(reader, split, CPU)
    small.features.unlink()
    found = batches_on_device(replace(loaded, videos=FeatureFile(small.features)), split)
    assert torch.equal(found[0].streams["object"].values, expected[0].streams["object"].values)


def test_too_little_memory(small: SmallDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, split = open_split(small)
    monkeypatch.setattr(gpu_tables, "free_memory", lambda device: gpu_tables.LEFT_FREE + 1000.0)
    take = r"^--features_on_device: the features of the training split take 7344 bytes and a step 2\.1 GB or more, "
    with pytest.raises(InputError, match=take + r"cpu has 2\.1 GB free$"):
        on_device(reader, split, CPU)
    monkeypatch.setattr(gpu_tables, "free_memory", lambda device: gpu_tables.LEFT_FREE + 10_000.0)
    on_device(reader, split, CPU)


def test_free_memory_of_the_machine() -> None:
    assert free_memory(CPU) > 1e6


def test_a_run_is_the_same(shared: SmallDataset, finished: object) -> None:
    """With features from the files, the cache or memory."""
    reference = shared.results / "finished"
    for name, flags in {"from files": ["--feature_cache", "off"], "from memory": ["--features_on_device"]}.items():
        run = run_train(shared.flags("--n_epoch", str(EPOCHS), "--description", name, "--save_scores", *flags))
        assert_same_run(run, reference)


def test_a_resumed_run_can_read_features_in_another_way(shared: SmallDataset, tmp_path: Path) -> None:
    run = run_train(shared.flags("--n_epoch", "1", "--description", "other features", "--features_on_device"))
    flags = ["--no_features_on_device", "--feature_cache", str(tmp_path)]
    run_train(["--resume", str(run), "--n_epoch", "2", "--device", "-1", *flags])
    assert list(tmp_path.glob(f"{shared.texts.name}-*.cache/tokens-5.rows"))
