from __future__ import annotations

import errno
import os
import resource
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch

from method.data.batch import Loader
from method.data.dataset import CorpusVideos, FeatureReader, Queries
from method.data.features import FeatureFile
from method.evaluation.corpus import Corpus, encode_corpus, encode_queries
from method.evaluation.ranking import rank
from method.model.retrieval import RetrievalModel
from method.runtime.errors import InputError
from method.serving.engines.exact import ExactEngine
from method.serving.index import fingerprint, index_path, open_index
from method.serving.searcher import Searcher
from tests.evaluation.corpora import settings_of
from tests.helpers.linked_files import WAYS, change, link
from tests.helpers.poor_disk import refuse_all
from tests.helpers.small_dataset import SmallDataset
from tests.helpers.small_models import lively_model

CPU = torch.device("cpu")
BATCH = 3


class World:
    """A dataset, a model and the index of its evaluated videos."""

    def __init__(self, root: Path, model: RetrievalModel | None = None) -> None:
        self.data = SmallDataset(root)
        self.model = model or lively_model()
        self.path = index_path(root / "model.ckpt", "test")
        self.video_ids = self.data.videos_of(self.data.test_txt)
        self.checkpoint = "a digest"
        self.batch_size = BATCH
        self.precision = "off"
        self.encoded = 0

    @property
    def reader(self) -> FeatureReader:
        a = self.model.architecture
        files = FeatureFile(self.data.features), FeatureFile(self.data.texts)
        return FeatureReader(*files, a.streams, a.query_width, a.max_frames, a.max_words)

    def encode(self) -> Corpus:
        self.encoded += 1
        videos = Loader(CorpusVideos(self.reader, self.video_ids), BATCH, 0, False)
        return encode_corpus(self.model, videos, CPU, self.precision)

    def open(self, rebuild: bool = False, encode: Callable[[], Corpus] | None = None) -> Corpus:
        features = self.reader, self.video_ids, self.batch_size, self.precision
        made_from = fingerprint(self.checkpoint, self.model.architecture, *features)
        return open_index(self.path, made_from, encode or self.encode, rebuild)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def same(first: Corpus, second: Corpus) -> bool:
    return first.video_ids == second.video_ids and all(
        torch.equal(first.frames[name].values, second.frames[name].values)
        and first.frames[name].lengths == second.frames[name].lengths
        for name in {*first.frames, *second.frames}
    )


def test_an_index_has_the_embeddings_and_is_built_once(world: World) -> None:
    encoded = world.encode()
    assert same(world.open(), encoded)
    assert world.encoded == 2
    assert same(world.open(), encoded)
    assert world.encoded == 2
    assert world.path == world.data.root / "model.ckpt.index" / "test.pt"


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_an_index_in_half_precision_is_half_as_large_and_ranks_like_evaluation(world: World, precision: str) -> None:
    whole = world.open()
    world.precision = precision
    with pytest.raises(InputError, match="another --eval_amp; rebuild it"):
        world.open()
    half = world.open(rebuild=True)
    assert same(half, world.encode())
    for name, keys in half.frames.items():
        assert 2 * keys.values.nbytes == whole.frames[name].values.nbytes
    captions = world.data.captions()
    queries = encode_queries(world.model, Loader(Queries(world.reader, captions), 4, 0, False), CPU, precision)
    expected = rank(half, queries, settings_of(0.3)).ranks["fused"]
    settings = settings_of(0.3, precision=precision)
    engine = ExactEngine([half], settings, CPU)
    searcher = Searcher(world.model, engine, captions, world.reader, _no_encoder, {}, settings)
    assert [searcher.search_caption(caption.id, 1).right_rank for caption in captions] == expected.tolist()


def test_best_frames_have_the_scores(world: World) -> None:
    corpus, captions = world.open(), world.data.captions()
    settings = settings_of(0.3)
    engine = ExactEngine([corpus], settings, CPU)
    searcher = Searcher(world.model, engine, captions, world.reader, _no_encoder, {}, settings)
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


def _no_encoder() -> Any:
    raise AssertionError("a caption needs no text encoder")


def replace_content(world: World) -> None:
    """As if the file had been replaced by one of the same size and time."""
    status = world.data.features.stat()
    with h5py.File(world.data.features, "r+") as file:
        for video_id in world.video_ids:
            file[f"{video_id}/clip_feat"][0, 0] += 1
    os.utime(world.data.features, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert world.data.features.stat().st_size == status.st_size


@pytest.mark.parametrize(("change", "part"), [
    (lambda world: setattr(world, "checkpoint", "another digest"), "checkpoint"),
    (lambda world: setattr(world, "model", lively_model(offset_scale=4.0)), "model options"),
    (lambda world: world.video_ids.reverse(), "list of videos"),
    (lambda world: world.video_ids.pop(), "list of videos"),
    (lambda world: os.utime(world.data.features, ns=(0, 0)), "feature file"),
    (replace_content, "feature file"),
], ids=["checkpoint", "architecture", "order", "fewer videos", "time", "content"])  # fmt: skip
def test_an_outdated_index_is_refused_until_it_is_rebuilt(
    world: World, change: Callable[[World], object], part: str
) -> None:
    world.open()
    kept = world.path.read_bytes()
    change(world)
    with pytest.raises(InputError, match=rf"test\.pt: .*another {part}.*--rebuild"):
        world.open()
    assert world.path.read_bytes() == kept
    assert same(world.open(rebuild=True), world.encode())
    assert same(world.open(), world.encode())


@pytest.mark.parametrize("way", WAYS)
def test_an_index_of_linked_features(world: World, way: str) -> None:
    world.open()
    part = link(world.data.features, way)
    if way != "symbolic":
        with pytest.raises(InputError, match="another feature file; rebuild it"):
            world.open()
    assert same(world.open(rebuild=True), world.encode())
    assert same(world.open(), world.encode())
    change(part, world.video_ids[1])
    with pytest.raises(InputError, match="another feature file; rebuild it"):
        world.open()


def test_an_index_on_a_poor_disk(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = world.encode()
    refuse_all(monkeypatch)
    assert same(world.open(encode=lambda: encoded), encoded)
    load = torch.load

    def without_maps(*arguments: Any, mmap: bool = False, **named: Any) -> Any:
        if mmap:
            raise RuntimeError("unable to mmap 9 bytes from file <test.pt>: No such device (19)")
        return load(*arguments, **named)

    monkeypatch.setattr(torch, "load", without_maps)
    assert same(world.open(), encoded)


def test_the_batch_size_matters_only_where_it_changes_keys(tmp_path: Path) -> None:
    for extent in ("valid", "padded"):
        world = World(tmp_path / extent, lively_model(fusion_extent=extent))
        world.open()
        world.batch_size = 4
        if extent == "padded":
            with pytest.raises(InputError, match="--eval_context_bsz"):
                world.open()
        else:
            world.open()


def flip_bit_of_an_embedding(content: bytes, world: World) -> bytes:
    row = world.encode().frames["object"].values[2].numpy().tobytes()
    assert content.count(row) == 1
    return content.replace(row, row[:5] + bytes([row[5] ^ 1]) + row[6:])


@pytest.mark.parametrize("damage", [
    lambda content, world: content[: len(content) * 2 // 3], lambda content, world: b"", flip_bit_of_an_embedding,
], ids=["truncated", "empty", "a flipped bit"])  # fmt: skip
def test_a_damaged_index_is_refused(world: World, damage: Callable[[bytes, World], bytes]) -> None:
    world.open()
    world.path.write_bytes(damage(world.path.read_bytes(), world))
    with pytest.raises(InputError, match=r"test\.pt: .*--rebuild"):
        world.open()
    assert same(world.open(rebuild=True), world.encode())


def test_another_file_in_the_place_of_an_index_is_refused(world: World) -> None:
    world.path.parent.mkdir()
    torch.save({"model": {"weight": torch.ones(2)}}, world.path)
    with pytest.raises(InputError, match="not an index"):
        world.open()
    torch.save({"format": "A3PRVR index", "version": 0}, world.path)
    with pytest.raises(InputError, match="index version 0, expected 2"):
        world.open()


def test_an_index_runs_nothing_that_is_in_it(world: World, tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "harm"),)

    world.path.parent.mkdir()
    torch.save({"format": "A3PRVR index", "harm": Harm()}, world.path)
    with pytest.raises(InputError, match="not a readable index"):
        world.open()
    assert not (tmp_path / "harm").exists()


def test_interrupted_encoding_leaves_no_index_or_the_old_one(world: World) -> None:
    def interrupted() -> Corpus:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        world.open(encode=interrupted)
    assert not list(world.path.parent.glob("*.pt"))
    assert same(world.open(), world.encode())
    kept = world.path.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        world.open(rebuild=True, encode=interrupted)
    assert world.path.read_bytes() == kept


def test_a_full_disk_is_named_and_leaves_nothing(world: World) -> None:
    corpus = world.encode()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)) as caught:
            world.open(encode=lambda: corpus)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    assert caught.value.filename == str(world.path)
    assert [path.name for path in world.path.parent.iterdir()] == ["test.lock"]


def test_of_two_processes_one_makes_the_index_and_the_other_waits(world: World) -> None:
    corpus = world.encode()
    encoded: list[float] = []

    def slowly() -> Corpus:
        encoded.append(time.monotonic())
        time.sleep(0.3)
        return corpus

    # Each open of the lock file is a holder of its own, in threads as in processes.
    found: list[Corpus] = []
    threads = [threading.Thread(target=lambda: found.append(world.open(encode=slowly))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(encoded) == 1
    assert len(found) == 3
    assert all(same(one, corpus) for one in found)


def test_keys_that_are_not_finite_are_not_kept(world: World) -> None:
    corpus = world.encode()
    with torch.inference_mode():
        corpus.frames["object"].values[3, 1] = torch.nan
    with pytest.raises(InputError, match="object frame embeddings are not all finite"):
        world.open(encode=lambda: corpus)
    assert not world.path.exists()
