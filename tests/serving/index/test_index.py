from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import h5py
import pytest
import torch

from method.data.batch import Loader
from method.data.dataset import Queries
from method.evaluation.corpus import encode_queries
from method.evaluation.ranking import rank
from method.runtime.errors import InputError
from method.serving import opening
from method.serving.engines import Ranking
from method.serving.engines.choice import EngineSettings
from method.serving.engines.exact import ExactEngine
from method.serving.index.features import Longest, batch_lengths
from method.serving.searcher import Searcher
from method.serving.selection import Selection
from tests.evaluation.corpora import settings_of
from tests.helpers.index_world import CPU, CountingEncoder, IndexWorld, corpus_results, results_of
from tests.helpers.linked_files import WAYS, change, link
from tests.helpers.poor_disk import refuse_all
from tests.helpers.small_models import lively_model


@pytest.fixture
def world(tmp_path: Path) -> IndexWorld:
    CountingEncoder.encoded = []
    return IndexWorld(tmp_path)


def test_an_index_has_the_embeddings_and_videos_are_encoded_once(world: IndexWorld) -> None:
    snapshot = world.update()
    assert world.folder == world.data.root / "model.ckpt.index"
    assert snapshot.video_ids == sorted(world.video_ids) == sorted(CountingEncoder.encoded)
    (corpus,), encoded = [own.corpus for own in snapshot.segments], world.encode()
    for name, frames in encoded.frames.items():
        assert torch.equal(corpus.frames[name].values, frames.values)
        assert corpus.frames[name].lengths == frames.lengths
    assert results_of(snapshot, world.video_ids) == corpus_results(encoded)
    assert world.update().generation == snapshot.generation == 1
    assert len(CountingEncoder.encoded) == len(world.video_ids)


def test_growing_encodes_new_videos_alone_and_gives_the_same_scores(world: IndexWorld, tmp_path: Path) -> None:
    for video_id in reversed(world.video_ids):
        CountingEncoder.encoded = []
        grown = world.update(video_id)
        assert CountingEncoder.encoded == [video_id]
    assert len(world.segments()) == grown.generation == len(world.video_ids)
    expected = corpus_results(world.encode())
    assert results_of(grown, world.video_ids) == expected
    compacted = world.index.compact()
    assert len(world.segments()) == 1
    assert results_of(compacted, world.video_ids) == expected
    assert results_of(grown, world.video_ids) == expected  # its files are deleted
    other = IndexWorld(tmp_path / "other")
    assert results_of(other.update(*world.training, *world.video_ids), world.video_ids) == expected


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_many_small_segments_are_merged(world: IndexWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("method.serving.index.compaction._MANY", 3)
    monkeypatch.setattr("method.serving.index.compaction._SMALL", 5)
    world.update(*world.training[:6])  # not small
    counts = []
    for number, video_id in enumerate(world.video_ids):
        grown = world.update(video_id)
        if number == 1:
            world.index.remove([video_id])
        counts.append(len(world.segments()))
    assert counts == [2, 2, 3, 4, 2, 3, 4, 2]
    left = [video_id for video_id in world.video_ids if video_id != world.video_ids[1]]
    assert grown.video_ids == sorted([*left, *world.training[:6]])
    assert results_of(grown, left) == corpus_results(world.encode(left))


def test_segments_that_cannot_be_merged_stay(
    world: IndexWorld, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("method.serving.index.compaction._MANY", 1)
    world.update(world.video_ids[0])
    monkeypatch.setattr("method.serving.index.compaction.write_segment", full_disk)
    grown = world.update(world.video_ids[1])
    assert grown.video_ids == sorted(world.video_ids[:2])
    assert "small segments are not merged" in caplog.text


def test_scores_are_those_of_evaluation(world: IndexWorld) -> None:
    snapshot = world.update()
    for batch in (3, 8):
        assert results_of(snapshot, world.video_ids) == corpus_results(world.evaluated(batch))


def test_padded_fusion_reads_as_far_as_in_the_batches_of_evaluation(tmp_path: Path) -> None:
    world = IndexWorld(tmp_path, lively_model(fusion_extent="padded"))
    results: dict[int, list[Ranking]] = {}
    before: dict[str, Longest] = {}
    for world.batch_size in (3, 1, 8):
        CountingEncoder.encoded = []
        snapshot = world.update()
        longest = batch_lengths(world.reader, world.video_ids, world.batch_size)
        assert CountingEncoder.encoded == [name for name in world.video_ids if longest[name] != before.get(name)]
        before = longest
        results[world.batch_size] = results_of(snapshot, world.video_ids)
        assert results[world.batch_size] == corpus_results(world.evaluated(world.batch_size))
    assert results[1] != results[8]


def test_splits_are_selections_of_one_index(world: IndexWorld) -> None:
    world.update()
    CountingEncoder.encoded = []
    both = world.update(*world.video_ids, *world.training)
    assert CountingEncoder.encoded == world.training
    assert results_of(both, world.video_ids) == corpus_results(world.encode())
    assert results_of(both, world.training[:3]) == corpus_results(world.encode(world.training[:3]))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_an_index_in_half_precision_is_half_as_large_and_ranks_like_evaluation(
    world: IndexWorld, precision: str
) -> None:
    (whole,) = (own.corpus for own in world.update().segments)
    world.precision = precision
    with pytest.raises(InputError, match="another --eval_amp; rebuild it"):
        world.update()
    snapshot = world.update(rebuild=True)
    (half,) = (own.corpus for own in snapshot.segments)
    for name, keys in half.frames.items():
        assert 2 * keys.values.nbytes == whole.frames[name].values.nbytes
    captions = world.data.captions()
    queries = encode_queries(world.model, Loader(Queries(world.reader, captions), 4, 0, False), CPU, precision)
    expected = rank(half, queries, settings_of(0.3)).ranks["fused"]
    settings = settings_of(0.3, precision=precision)
    engine = ExactEngine(snapshot.select(world.video_ids), settings, CPU)
    searcher = Searcher(world.model, engine, captions, world.reader, pytest.fail, {}, settings)
    assert [searcher.search_caption(caption.id, 1).right_rank for caption in captions] == expected.tolist()


def test_best_frames_have_the_scores(world: IndexWorld) -> None:
    corpus, captions = world.encode(), world.data.captions()
    world.update(*world.training)
    snapshot = world.update()
    engine = ExactEngine(snapshot.select(world.video_ids), settings_of(0.3), CPU)
    searcher = Searcher(world.model, engine, captions, world.reader, pytest.fail, {}, settings_of(0.3))
    queries = encode_queries(world.model, Loader(Queries(world.reader, captions), 4, 0, False), CPU)
    later = 0
    for number, caption in enumerate(captions):
        for hit in searcher.search_caption(caption.id, count=100).hits:
            assert set(hit.best_frames) == {"action", "object"}
            for name, keys in corpus.video(corpus.video_ids.index(hit.video_id)).items():
                cosines = (keys @ queries.vectors[name][number]).tolist()
                frame = cosines.index(max(cosines))
                assert hit.best_frames[name] == (frame + 0.5) / len(cosines)
                assert hit.scores[name] == pytest.approx(cosines[frame], abs=1e-6)
                later += frame > 0
    assert later > len(captions)


# Changes of features and of the model


def test_changed_features_replace_a_video(world: IndexWorld) -> None:
    old = world.update()
    before = results_of(old, world.video_ids)
    world.change("E02", "E05")
    CountingEncoder.encoded = []
    new = world.update()
    assert CountingEncoder.encoded == ["E02", "E05"]
    assert results_of(new, world.video_ids) == corpus_results(world.encode())
    assert results_of(new, world.video_ids) != before
    assert results_of(old, world.video_ids) == before
    CountingEncoder.encoded = []
    assert world.update().generation == new.generation == 2
    assert not CountingEncoder.encoded


def test_another_time_of_the_feature_file_encodes_nothing(world: IndexWorld) -> None:
    first = world.update()
    before = world.manifest()
    os.utime(world.data.features, ns=(0, 0))
    CountingEncoder.encoded = []
    assert world.update().generation == first.generation
    assert not CountingEncoder.encoded
    after = world.manifest()
    assert after.segments[0].name == before.segments[0].name
    assert after.segments[0].features != before.segments[0].features
    kept = (world.folder / "manifest.json").stat().st_mtime_ns
    world.update()
    assert (world.folder / "manifest.json").stat().st_mtime_ns == kept


def test_content_that_changes_under_the_same_size_and_time_is_found(world: IndexWorld) -> None:
    world.update()
    status = world.data.features.stat()
    world.change("E03")
    os.utime(world.data.features, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert world.data.features.stat().st_size == status.st_size
    CountingEncoder.encoded = []
    world.update()
    assert CountingEncoder.encoded == ["E03"]


def test_videos_that_leave_the_feature_file_leave_the_index(world: IndexWorld) -> None:
    world.update()
    world.delete("E01", "E06")
    left = [video_id for video_id in world.video_ids if video_id not in ("E01", "E06")]
    snapshot = world.update(*left)
    assert snapshot.video_ids == sorted(left)
    assert results_of(snapshot, left) == corpus_results(world.encode(left))
    with pytest.raises(InputError, match="'E01/i3d_feat' is missing"):
        world.update("E01")


@pytest.mark.parametrize("way", WAYS)
def test_linked_features(world: IndexWorld, way: str) -> None:
    world.update()
    part = link(world.data.features, way)
    CountingEncoder.encoded = []
    world.update()
    assert not CountingEncoder.encoded
    change(part, world.video_ids[1])
    snapshot = world.update()
    assert len(CountingEncoder.encoded) == 1 or way == "raw"
    assert CountingEncoder.encoded
    assert results_of(snapshot, world.video_ids) == corpus_results(world.encode())


@pytest.mark.parametrize(("change", "part"), [
    (lambda world: setattr(world, "checkpoint", "another digest"), "checkpoint"),
    (lambda world: setattr(world, "model", lively_model(offset_scale=4.0)), "model options"),
], ids=["checkpoint", "architecture"])  # fmt: skip
def test_an_index_of_another_model_is_refused_until_it_is_rebuilt(
    world: IndexWorld, change: Callable[[IndexWorld], object], part: str
) -> None:
    world.update()
    kept = (world.folder / "manifest.json").read_bytes()
    change(world)
    with pytest.raises(InputError, match=rf"model\.ckpt\.index: .*another {part}.*--rebuild"):
        world.update()
    assert (world.folder / "manifest.json").read_bytes() == kept
    snapshot = world.update(rebuild=True)
    assert snapshot.generation == 2
    assert len(world.segments()) == 1
    assert results_of(snapshot, world.video_ids) == corpus_results(world.encode())


# Removal


def test_removed_videos_are_added_again_only_by_name(world: IndexWorld) -> None:
    world.update()
    snapshot = world.index.remove(["E01", "E04"])
    left = [video_id for video_id in world.video_ids if video_id not in ("E01", "E04")]
    assert snapshot.video_ids == left
    CountingEncoder.encoded = []
    assert world.update().video_ids == left
    assert not CountingEncoder.encoded
    assert world.update(*world.video_ids, named=["E04"]).video_ids == sorted([*left, "E04"])
    assert CountingEncoder.encoded == ["E04"]
    assert world.manifest().excluded == ("E01",)
    with pytest.raises(InputError, match="the index has no video 'E01'"):
        world.index.remove(["E02", "E01"])
    assert "E02" in world.update().places


def test_an_index_may_become_empty(world: IndexWorld) -> None:
    world.update()
    assert world.index.remove(world.video_ids).video_ids == []
    assert world.update().video_ids == []
    assert not world.segments()
    assert results_of(world.update(*world.video_ids, named=world.video_ids), world.video_ids) == corpus_results(
        world.encode()
    )


def test_the_file_that_was_read_counts_where_another_takes_its_place(world: IndexWorld, tmp_path: Path) -> None:
    world.update()
    encoder, copy = world.encoder, tmp_path / "copy.hdf5"
    encoder.reader.videos.state()  # opens it
    shutil.copy(world.data.features, copy)
    with h5py.File(copy, "r+") as file:
        file["E03/clip_feat"][0, 0] += 1
    copy.replace(world.data.features)
    world.index.update(encoder, world.video_ids)
    CountingEncoder.encoded = []
    with pytest.raises(InputError, match=r"hdf5: modified while it was being read"):
        world.index.update(encoder, world.video_ids, rebuild=True)
    assert results_of(world.update(), world.video_ids) == corpus_results(world.encode())
    assert CountingEncoder.encoded == [*world.video_ids, "E03"]


def test_removed_videos_stay_removed_when_the_index_is_rebuilt(world: IndexWorld) -> None:
    world.update()
    world.index.remove(["E01"])
    left = [video_id for video_id in world.video_ids if video_id != "E01"]
    plan = world.index.plan(world.encoder, world.video_ids, rebuild=True)
    assert (plan.missing, plan.skipped) == (left, ["E01"])
    assert world.update(rebuild=True).video_ids == left
    assert world.update(rebuild=True, named=["E01"]).video_ids == ["E01"]


def test_an_open_index_keeps_no_file_descriptors(world: IndexWorld) -> None:
    for video_id in world.video_ids:
        world.update(video_id)
    before = len(os.listdir("/dev/fd"))
    snapshot = world.index.open()
    assert snapshot is not None
    assert len(snapshot.segments) == len(world.video_ids)
    assert len(os.listdir("/dev/fd")) == before


def test_only_intact_embeddings_are_copied_to_an_engine(world: IndexWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    world.update()
    (segment,) = world.segments()
    with segment.open("r+b") as file:
        file.write(b"\xff")
    snapshot = world.index.open()
    assert snapshot is not None
    monkeypatch.setattr(opening, "open_engine", lambda *_: pytest.fail("the embeddings are damaged"))
    settings = cast(opening.SearchSettings, SimpleNamespace(engine=EngineSettings("milvus", uri="frames.db")))
    videos = Selection(world.video_ids, [])
    with pytest.raises(InputError, match="wrong checksum of the action embeddings"):
        opening._open_engine([snapshot], videos, settings_of(0.3), CPU, {}, settings)


def test_a_calibration_is_kept_until_the_index_is_rebuilt(world: IndexWorld) -> None:
    world.update()
    world.index.calibrate({"bins": [0.5, 1]})
    world.index.calibrate({"other": 2})
    world.update(*world.training)
    assert world.index.compact().manifest.calibration == {"bins": [0.5, 1], "other": 2}
    assert world.update(rebuild=True).manifest.calibration is None


def test_an_index_on_a_poor_disk(world: IndexWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = corpus_results(world.encode())
    refuse_all(monkeypatch)
    assert results_of(world.update(), world.video_ids) == expected
    assert results_of(world.update(), world.video_ids) == expected


def test_embeddings_that_are_not_finite_are_not_kept(world: IndexWorld) -> None:
    with torch.no_grad():
        world.model.branch("object").key.weight[0, 0] = torch.nan
    with pytest.raises(InputError, match="object frame embeddings are not all finite"):
        world.update()
    assert [path.name for path in world.folder.iterdir()] == [".lock"]
