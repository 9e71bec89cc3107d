"""The feature cache: bit-identical to the feature files, built once, and never used when outdated."""

from __future__ import annotations

import fcntl
import itertools
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from method.data.batch import EpochBatches, Loader, QueryBatch, VideoBatch
from method.data.cache import feature_cache
from method.data.cache.cached_source import CachedSource
from method.data.cache.feature_cache import with_cache
from method.data.cache.rows_file import RowsFile
from method.data.dataset import CorpusVideos, FeatureReader, Queries, TrainingVideos
from method.data.features import FeatureFile
from method.data.preprocessing import FloatRows
from method.data.ragged import Ragged
from method.data.splits import Split, check_split
from method.runtime.errors import InputError
from method.runtime.progress import interruptible
from tests.helpers.linked_files import WAYS, change, link
from tests.helpers.poor_disk import refuse_all
from tests.helpers.small_dataset import QUERY_WIDTH, STREAMS, SmallDataset

TABLES = {"i3d_feat-6.rows": 10, "clip_feat-6.rows": 6, "tokens-3.rows": QUERY_WIDTH}


def make_reader(small: SmallDataset, **changes: Any) -> FeatureReader:
    reader = FeatureReader(FeatureFile(small.features), FeatureFile(small.texts), STREAMS, QUERY_WIDTH, 6, 3)
    return replace(reader, **changes)


def splits_of(small: SmallDataset, reader: FeatureReader) -> list[Split]:
    paths = {"training split": small.train_txt, "evaluated split": small.test_txt}
    return [check_split(name, path, reader) for name, path in paths.items()]


def cache(small: SmallDataset, folder: Path | None = None, workers: int = 0, **changes: Any) -> FeatureReader:
    reader = make_reader(small, **changes)
    return with_cache(reader, splits_of(small, reader), folder, workers)


def files(root: Path) -> dict[str, Path]:
    return {path.name: path for path in root.rglob("*.rows")}


def identities(root: Path) -> dict[str, int]:
    return {name: path.stat().st_ino for name, path in files(root).items()}


def same(one: Ragged, other: Ragged) -> bool:
    return torch.equal(one.values, other.values) and one.layout.lengths == other.layout.lengths


def assert_same_features(ours: FeatureReader, small: SmallDataset, **changes: Any) -> None:
    plain = make_reader(small, **changes)
    for split in splits_of(small, plain):
        ids = split.video_ids[::-1]
        for branch, rows in plain.gather_videos(ids).items():
            assert same(ours.gather_videos(ids)[branch], rows), branch
        captions = [caption.id for caption in split.captions][::2]
        assert same(ours.gather_queries(captions), plain.gather_queries(captions))


@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_batches_with_and_without(small: SmallDataset, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_cache, "_BYTES_PER_WORKER", 100)
    passes: list[list[VideoBatch | QueryBatch]] = []
    for reader in (cache(small, workers=workers), make_reader(small)):
        training, evaluated = splits_of(small, reader)
        order = EpochBatches(12, 5, seed=1)
        loaders = [
            Loader(TrainingVideos(reader, training.captions), order, workers, pinned=False),
            Loader(CorpusVideos(reader, evaluated.video_ids), 3, workers, pinned=False),
            Loader(Queries(reader, evaluated.captions), 4, workers, pinned=False),
        ]
        passes.append([batch for loader in loaders for batch in loader])
    assert len(passes[0]) == len(passes[1]) == 3 + 3 + 5
    for ours, theirs in zip(*passes, strict=True):
        assert ours.captions == theirs.captions
        assert (ours.tokens is None) == (theirs.tokens is None)
        assert ours.tokens is None or theirs.tokens is None or same(ours.tokens, theirs.tokens)
        if isinstance(ours, VideoBatch) and isinstance(theirs, VideoBatch):
            assert ours.video_ids == theirs.video_ids
            assert torch.equal(ours.labels_Q, theirs.labels_Q)
            assert all(same(ours.streams[branch], theirs.streams[branch]) for branch in theirs.streams)


def test_a_second_run_reads_only_a_sample_of_the_feature_files(
    small: SmallDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    read = FeatureFile.read

    def counted(self: FeatureFile, name: str, width: int) -> FloatRows:
        seen.append(name)
        return read(self, name, width)

    monkeypatch.setattr(FeatureFile, "read", counted)
    cache(small)
    assert len(seen) == 20 + 20 + 50 + 3 * 8
    seen.clear()
    reader = cache(small)
    assert len(seen) == 3 * 8
    reader.gather_videos([f"T{number:02d}" for number in range(12)])
    reader.gather_queries([caption.id for caption in small.captions()])
    assert len(seen) == 3 * 8


def test_the_folder_of_the_cache(small: SmallDataset, tmp_path: Path) -> None:
    cache(small)
    beside = files(tmp_path / "dataset")
    assert set(beside) == set(TABLES)
    assert {path.parent for path in beside.values()} == {
        path.with_name(f"{path.name}.cache") for path in (small.features, small.texts)
    }
    elsewhere = tmp_path / "elsewhere" / "cache"
    assert_same_features(cache(small, elsewhere), small)
    assert set(files(elsewhere)) == set(TABLES)
    for name, width in TABLES.items():
        assert files(elsewhere)[name].read_bytes() == beside[name].read_bytes()
        assert beside[name].stat().st_size > 20 * 2 * width * 4


# What makes it outdated


def rewrite(path: Path, name: str) -> None:
    with h5py.File(path, "r+") as file:
        file[name][0] = file[name][0] * 2 + 1


def put_back_times(path: Path, change: Callable[[], None]) -> None:
    status = path.stat()
    change()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)


CHANGES: dict[str, tuple[Callable[[SmallDataset], Any], set[str]]] = {
    "features": (lambda d: rewrite(d.features, "T03/clip_feat"), {"i3d_feat-6.rows", "clip_feat-6.rows"}),
    "tokens": (lambda d: rewrite(d.texts, "T03#enc#0"), {"tokens-3.rows"}),
    "features of the same size and time": (
        lambda d: put_back_times(d.features, lambda: rewrite(d.features, "T03/clip_feat")),
        {"i3d_feat-6.rows", "clip_feat-6.rows"},
    ),
    "nothing": (lambda d: None, set()),
}


@pytest.mark.parametrize(("change", "stale"), CHANGES.values(), ids=CHANGES)
def test_a_changed_file_rebuilds_the_cache(small: SmallDataset, change: Callable[..., Any], stale: set[str]) -> None:
    cache(small)
    before = identities(small.root)
    change(small)
    assert_same_features(cache(small), small)
    after = identities(small.root)
    assert set(after) == set(TABLES)  # replaced, not piled up
    assert {name for name in after if after[name] != before[name]} == stale


def test_a_change_on_a_file_system_without_times(small: SmallDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sampled items show it."""
    monkeypatch.setattr("method.data.features.state_of", lambda path: {"size": 0})
    cache(small)
    with h5py.File(small.features, "r+") as file:
        for video in file:
            file[video]["i3d_feat"][0, 0] += 1
    assert_same_features(cache(small), small)


@pytest.mark.parametrize(("module", "name"), [
    ("method.data.cache.feature_cache", "FORMAT"), ("torch", "__version__"), ("numpy", "__version__"),
])  # fmt: skip
def test_other_versions_rebuild_it(
    small: SmallDataset, module: str, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache(small)
    before = identities(small.root)
    monkeypatch.setattr(f"{module}.{name}", 99 if name == "FORMAT" else "99.0")
    with caplog.at_level(logging.INFO):
        cache(small)
    assert all(identities(small.root)[table] != before[table] for table in TABLES)
    expected = "format" if name == "FORMAT" else module
    assert sum(m.startswith("rebuilding ") and f": outdated ({expected} changed)" in m for m in caplog.messages) == 3


def test_other_limits_and_streams_have_their_own_files(small: SmallDataset) -> None:
    cache(small)
    before = identities(small.root)
    for changes in ({"max_frames": 4}, {"max_tokens": 2}, {"streams": dict.fromkeys(STREAMS, STREAMS["action"])}):
        assert_same_features(cache(small, **changes), small, **changes)
    after = identities(small.root)
    assert set(after) == {*TABLES, "i3d_feat-4.rows", "clip_feat-4.rows", "tokens-2.rows"}
    assert {name: after[name] for name in before} == before


def test_a_split_uses_the_cache_of_both_and_both_extend_that_of_one(small: SmallDataset) -> None:
    reader = make_reader(small)
    training, evaluated = splits_of(small, reader)
    with_cache(reader, [evaluated], None, 0)
    small_ones = identities(small.root)
    assert_same_features(cache(small), small)
    larger = identities(small.root)
    assert all(larger[name] != small_ones[name] for name in TABLES)
    few = replace(training, captions=training.captions[:4])
    for part in ([evaluated], [few], [few, evaluated]):
        with_cache(reader, part, None, 0)
    assert identities(small.root) == larger


# Errors


def test_bad_rows_raise_the_same_error_as_without_a_cache(small: SmallDataset) -> None:
    with h5py.File(small.features, "r+") as videos:
        videos["T03/clip_feat"][1, 1] = np.nan
    for workers in (0, 1):
        with pytest.raises(InputError) as cached:
            cache(small, workers=workers)
        assert cached.value.args == _mistake(small).args
    assert set(files(small.root)) == {"i3d_feat-6.rows"}
    assert not list(small.root.rglob("*.part"))


def _mistake(small: SmallDataset) -> InputError:
    with pytest.raises(InputError, match="'T03/clip_feat' row 1 holds NaN") as mistake:
        make_reader(small).gather_videos(["T03"])
    return mistake.value


@pytest.mark.parametrize("name", TABLES)
def test_damage_is_noticed_at_the_start(small: SmallDataset, name: str) -> None:
    cache(small)
    before = identities(small.root)
    path = files(small.root)[name]
    for content in (path.read_bytes()[:-100], b"", path.read_bytes()[:-1] + b"x"):
        path.write_bytes(content)
        assert_same_features(cache(small), small)
        assert {table for table, inode in identities(small.root).items() if inode != before[table]} <= {name}
        assert path.stat().st_size > len(content) or content


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_item_is_read_from_its_file(
    small: SmallDataset, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    cache(small)
    path = files(small.root)["i3d_feat-6.rows"]
    content = bytearray(path.read_bytes())
    content[10 * 4 * 6 + 7] ^= 1  # in the second item, which is not among those that are compared at the start
    path.write_bytes(content)
    reader = cache(small)
    assert path.exists()
    caplog.clear()
    training = splits_of(small, reader)[0]
    batches = list(Loader(CorpusVideos(reader, training.video_ids), 4, workers, pinned=False))
    expected = make_reader(small).gather_videos(training.video_ids)["action"].values
    assert torch.equal(torch.cat([batch.streams["action"].values for batch in batches]), expected)
    assert not path.exists()
    if not workers:
        source = f"reading it from {small.features}; the cache will be rebuilt by the next run"
        assert [m for m in caplog.messages if "corrupt" in m] == [f"{path}: item 'T01' is corrupt, {source}"]
        list(Loader(CorpusVideos(reader, training.video_ids), 4, workers, pinned=False))
        assert sum("corrupt" in message for message in caplog.messages) == 1
    assert_same_features(cache(small), small)
    assert path.exists()


def test_a_damaged_item_whose_source_has_changed(small: SmallDataset) -> None:
    cache(small)
    rows = RowsFile(files(small.root)["i3d_feat-6.rows"])
    os.truncate(rows.path, 10)
    with h5py.File(small.features, "r+") as videos:
        del videos["T05/i3d_feat"]
        videos["T05/i3d_feat"] = np.ones((2, 10), np.float32)
    table = CachedSource(rows, make_reader(small).hdf5_sources["i3d_feat"])
    assert torch.equal(table.gather(["T04"]).values, make_reader(small).gather_videos(["T04"])["action"].values)
    with pytest.raises(InputError, match=r"numpy\.hdf5: 'T05' has changed since it was cached; restart the run"):
        table.gather(["T05"])


def test_too_little_space(
    small: SmallDataset, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    usage = shutil.disk_usage(small.root)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=feature_cache.LEFT_FREE + 4000))
    reader = cache(small)
    assert set(files(small.root)) == {"clip_feat-6.rows"}  # about 2,600 bytes, the others 4,400 and more
    (line,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert line.startswith("no feature cache of i3d_feat, tokens (")
    assert "and 1.1 GB to spare, 1.1 GB free" in line
    assert_same_features(reader, small)


def test_a_disk_that_fills_up_meanwhile(
    small: SmallDataset, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    reader = cache(small)
    monkeypatch.undo()
    (line,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert "i3d_feat, clip_feat, tokens" in line
    assert "i3d_feat-6.rows: No space left on device" in line
    assert_same_features(reader, small)
    assert not [path for path in small.root.rglob("*.cache/*") if path.name != ".lock"]


def test_a_feature_file_modified_while_it_is_read(small: SmallDataset, caplog: pytest.LogCaptureFixture) -> None:
    reader = make_reader(small)
    splits = splits_of(small, reader)

    with interruptible(lambda: os.utime(small.features)):
        with_cache(reader, splits, None, 0)
    assert set(files(small.root)) == {"tokens-3.rows"}
    assert f"{small.features}: modified while it was being read" in caplog.text
    assert_same_features(cache(small), small)
    assert set(files(small.root)) == set(TABLES)


class Stop(Exception):
    pass


def test_interrupted_and_restarted(small: SmallDataset) -> None:
    reader = make_reader(small)
    splits = splits_of(small, reader)

    def stop_at(number: int) -> Callable[[], None]:
        polls = itertools.count()

        def check() -> None:
            if next(polls) == number:
                raise Stop

        return check

    passed = 0
    for number in range(12):
        try:
            with interruptible(stop_at(number)):
                with_cache(reader, splits, None, 0)
            passed += 1
        except Stop:
            pass
        assert not list(small.root.rglob("*.part"))
        assert set(files(small.root)) <= set(TABLES)
    assert 0 < passed < 12
    assert_same_features(cache(small), small)


# Files that a feature file links to


@pytest.mark.parametrize("way", WAYS)
def test_a_changed_linked_file_rebuilds_the_cache(small: SmallDataset, way: str) -> None:
    part = link(small.features, way)
    for number, (file, state) in enumerate(((part, "a part"), (small.features, "the links"), (part, "nothing"))):
        cache(small)
        before = identities(small.root)
        if state == "a part":
            change(file, "T03")  # not in the sample
        elif state == "the links":
            os.utime(file)
        assert_same_features(cache(small), small)
        after = identities(small.root)
        stale = set() if state == "nothing" else {"i3d_feat-6.rows", "clip_feat-6.rows"}
        assert {name for name in after if after[name] != before[name]} == stale, number


# Several datasets in one folder


def test_datasets_of_the_same_file_names_share_a_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shared, (one, other) = tmp_path / "cache", (SmallDataset(tmp_path / name) for name in ("one", "other"))
    rewrite(other.features, "T03/clip_feat")
    for small in (one, other):
        cache(small, shared)
    before = {path: path.stat().st_ino for path in shared.rglob("*.rows")}
    assert len(before) == 2 * len(TABLES)
    caplog.set_level(logging.INFO)
    for small in (one, other):
        assert_same_features(cache(small, shared), small)
    assert {path: path.stat().st_ino for path in shared.rglob("*.rows")} == before
    assert not caplog.messages


def test_a_folder_named_without_a_digest_is_still_read(small: SmallDataset, tmp_path: Path) -> None:
    shared = tmp_path / "cache"
    cache(small)
    shared.mkdir()
    for source in (small.features, small.texts):
        source.with_name(f"{source.name}.cache").rename(shared / f"{source.name}.cache")
    before = identities(shared)
    assert_same_features(cache(small, shared), small)
    assert identities(small.root) == before
    rewrite(small.features, "T03/clip_feat")
    assert_same_features(cache(small, shared), small)
    assert len(list(shared.glob("*.cache"))) == 3  # it may be that of another dataset


# Poor file systems


def test_a_cache_on_a_poor_disk(small: SmallDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_all(monkeypatch)
    assert_same_features(cache(small), small)
    assert set(files(small.root)) == set(TABLES)


# Several processes


def test_a_second_process_waits_for_the_first(small: SmallDataset, caplog: pytest.LogCaptureFixture) -> None:
    folder = small.features.with_name(f"{small.features.name}.cache")
    folder.mkdir()
    caplog.set_level(logging.INFO)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waited = 0

        def release() -> None:
            nonlocal waited
            if f"waiting for another process that is filling {folder}" in caplog.messages and not waited:
                waited = 1
                fcntl.flock(lock, fcntl.LOCK_UN)

        reader = make_reader(small)
        with interruptible(release):
            with_cache(reader, splits_of(small, reader), None, 0)
    assert waited
    assert set(files(small.root)) == set(TABLES)
