"""The Milvus engine against Milvus Lite; skipped without it."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from method.data.ragged import Ragged
from method.evaluation.scorer import ScoringSettings
from method.model.scoring import Similarity
from method.runtime.errors import InputError
from method.serving.engines.exact import ExactEngine
from method.serving.engines.milvus import MilvusEngine, open_milvus
from method.serving.engines.milvus_frames import MilvusFrames, collection_name, version_of
from method.serving.engines.rescoring import Videos
from tests.evaluation.corpora import Encoded, random_encoded, settings_of
from tests.helpers.paths import REPOSITORY

CPU = torch.device("cpu")
MADE_FROM = {"action": "a digest", "object": "a digest"}
SETTINGS = settings_of(0.3)

needs_milvus = pytest.mark.skipif(
    importlib.util.find_spec("pymilvus") is None or importlib.util.find_spec("milvus_lite") is None,
    reason="pymilvus or milvus-lite is not installed",
)


def encoded(videos: int = 30) -> Encoded:
    return random_encoded(videos=videos, queries=6, longest=9, width=8)


def first(whole: Encoded, videos: int) -> Encoded:
    return Encoded({name: own[:videos] for name, own in whole.frames.items()}, whole.vectors)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "frames.db"
    if importlib.util.find_spec("milvus_lite") is not None:
        from milvus_lite.server_manager import server_manager_instance

        server_manager_instance.release_all()


def opened(database: Path, whole: Encoded, index: str = "FLAT", **flags: Any) -> MilvusEngine:
    flags = {"made_from": MADE_FROM, **flags}
    return open_milvus(str(database), index, Videos(whole.corpus(), SETTINGS, CPU), **flags)


@needs_milvus
@pytest.mark.parametrize("index", ["FLAT", "AUTOINDEX", "HNSW"])
def test_milvus_finds_what_the_exact_engine_finds(database: Path, index: str) -> None:
    whole = encoded()
    exact = ExactEngine(whole.corpus(), SETTINGS, CPU).search(whole.vectors, 7)
    engine = opened(database, whole, index)
    assert engine.search(whole.vectors, 7) == exact
    assert engine.search({name: own[:1] for name, own in whole.vectors.items()}, 7) == exact[:1]
    assert engine.search(whole.vectors, 99) == ExactEngine(whole.corpus(), SETTINGS, CPU).search(whole.vectors, 99)
    for name, frames_nD in engine.frames(4).items():
        assert torch.equal(frames_nD, whole.frames[name][4])


@needs_milvus
def test_candidates_are_fetched_until_no_video_can_be_missing(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = encoded(videos=200)
    exact = ExactEngine(whole.corpus(), SETTINGS, CPU).search(whole.vectors, 1)
    engine = opened(database, whole)
    asked: list[int] = []
    monkeypatch.setattr("method.serving.engines.milvus._LEAST", 3)
    best = MilvusFrames.best

    def counted(self: MilvusFrames, vectors_QD: torch.Tensor, count: int) -> list[dict[str, float]]:
        asked.append(count)
        return best(self, vectors_QD, count)

    monkeypatch.setattr(MilvusFrames, "best", counted)
    monkeypatch.setattr("method.serving.engines.milvus._LIMITS", (1, 4, 16, 64))
    assert engine.search(whole.vectors, 1) == exact
    assert len(set(asked)) > 1


@needs_milvus
def test_all_videos_are_scored_if_milvus_finds_others_only() -> None:
    class Others:
        def best(self, vectors_QD: torch.Tensor, count: int) -> list[dict[str, float]]:
            return [{"v3": 1.0, "of another split": 0.9} for _ in vectors_QD]

    whole = encoded()
    engine = MilvusEngine(Videos(whole.corpus(), SETTINGS, CPU), dict.fromkeys(MADE_FROM, cast(Any, Others())), "")
    assert engine.search(whole.vectors, 7) == ExactEngine(whole.corpus(), SETTINGS, CPU).search(whole.vectors, 7)


@needs_milvus
def test_without_grouping_frames_are_fetched_until_they_are_of_enough_videos(database: Path) -> None:
    whole = encoded()
    engine = opened(database, whole)
    for frames in engine._frames.values():
        grouped = frames.best(whole.vectors["action"], 12)
        frames.can_group = False
        for own, expected in zip(frames.best(whole.vectors["action"], 12), grouped, strict=True):
            assert len(own) >= 12
            assert list(own)[:12] == list(expected)
    assert engine.search(whole.vectors, 5) == ExactEngine(whole.corpus(), SETTINGS, CPU).search(whole.vectors, 5)


@needs_milvus
def test_only_videos_that_are_missing_or_have_changed_are_inserted(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = encoded()
    inserted: list[str] = []
    insert = MilvusFrames._insert

    def counted(self: MilvusFrames, batch: Mapping[str, torch.Tensor], versions: Mapping[str, int]) -> None:
        inserted.extend(batch)
        insert(self, batch, versions)

    monkeypatch.setattr(MilvusFrames, "_insert", counted)
    opened(database, first(whole, 20))
    assert len(inserted) == 2 * 20
    inserted.clear()
    opened(database, whole)
    assert inserted == 2 * whole.video_ids[20:]
    inserted.clear()
    whole.frames["action"][3] = -whole.frames["action"][3]
    engine = opened(database, whole)
    assert inserted == ["v3"]
    assert engine.search(whole.vectors, 7) == ExactEngine(whole.corpus(), SETTINGS, CPU).search(whole.vectors, 7)
    few = first(whole, 10)  # the others stay, and are not found
    assert opened(database, few).search(few.vectors, 7) == ExactEngine(few.corpus(), SETTINGS, CPU).search(
        few.vectors, 7
    )


@needs_milvus
def test_an_interrupted_insertion_is_completed(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = encoded()
    monkeypatch.setattr("method.serving.engines.milvus_frames._ROWS", 40)
    insert, calls = MilvusFrames._insert, []

    def interrupted(self: MilvusFrames, batch: Any, versions: Any) -> None:
        calls.append(batch)
        if len(calls) == 2:
            kept = {video: frames[: len(frames) // 2 + 1] for video, frames in batch.items()}
            rows = [
                {"video": video, "frame": frame, "version": versions[video], "vector": row.numpy()}
                for video, frames in kept.items()
                for frame, row in enumerate(frames)
                if frame > 0
            ]
            self._client.insert(self.name, rows)
            raise KeyboardInterrupt
        insert(self, batch, versions)

    with monkeypatch.context() as patch:
        patch.setattr(MilvusFrames, "_insert", interrupted)
        with pytest.raises(KeyboardInterrupt):
            opened(database, whole)
    engine = opened(database, whole)
    for name, frames in engine._frames.items():
        rows = frames._client.query(frames.name, filter="frame >= 0", output_fields=["video", "frame"])
        assert len(rows) == sum(map(len, whole.frames[name]))


@needs_milvus
def test_a_collection_of_another_checkpoint_is_refused_or_made_again(database: Path) -> None:
    whole = encoded()
    opened(database, whole)
    other: dict[str, Any] = {"made_from": {**MADE_FROM, "object": "another"}}
    message = "the collection a3prvr_object was made from another checkpoint or precision; make it again with --rebuild"
    with pytest.raises(InputError, match=rf"--engine_uri .*frames\.db: {message}"):
        opened(database, whole, **other)
    few = first(whole, 4)
    engine = opened(database, few, **other, rebuild_outdated=True)
    assert set(engine._frames["object"].versions()) == {"v0", "v1", "v2", "v3"}
    assert len(engine._frames["action"].versions()) == 30
    assert len(opened(database, few, **other, rebuild=True)._frames["action"].versions()) == 4


@needs_milvus
def test_a_collection_of_someone_else_is_refused(database: Path) -> None:
    from pymilvus import MilvusClient

    client = MilvusClient(str(database))
    client.create_collection(collection_name("action"), dimension=8)
    with pytest.raises(InputError, match="a3prvr_action has other fields, id, vector; make it again with --rebuild"):
        opened(database, encoded())


@needs_milvus
def test_a_file_that_one_process_wrote_is_read_by_another(database: Path) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from tests.serving.test_milvus import encoded, opened\n"
        "opened(Path(sys.argv[1]), encoded())\n"
    )
    command = [sys.executable, "-c", script, str(database)]
    subprocess.run(command, cwd=REPOSITORY, check=True, timeout=120)
    whole = encoded()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MilvusFrames, "_insert", lambda *_: pytest.fail("nothing is missing"))
        engine = opened(database, whole)
    assert engine.search(whole.vectors, 7) == ExactEngine(whole.corpus(), SETTINGS, CPU).search(whole.vectors, 7)
    second = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert "cannot be opened: another process has it open" in second.stderr.strip().splitlines()[-1]


@needs_milvus
@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("http://127.0.0.1:1", r"--engine_uri http://127.0.0.1:1: Milvus fails \(Fail connecting"),
        ("frames.txt", r"--engine_uri frames.txt: expected http://HOST:PORT or the name of a file, FILE.db"),
        ("no/such/frames.db", "no folder no/such"),
    ],
)
def test_a_wrong_address_is_one_line(uri: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        open_milvus(uri, "FLAT", Videos(encoded().corpus(), SETTINGS, CPU), MADE_FROM)
    assert "\n" not in str(caught.value)


def test_a_missing_package_and_a_head_of_its_own_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    videos = Videos(encoded().corpus(), SETTINGS, CPU)
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "pymilvus" else find(name))
    with pytest.raises(InputError, match=r"pymilvus is missing; run `pip install -r requirements-milvus.txt`"):
        open_milvus("frames.db", "FLAT", videos, MADE_FROM)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    heads: ScoringSettings = replace(SETTINGS, heads={"object": _score})
    with pytest.raises(InputError, match="the branch object does not score by its best frame; expected --engine exact"):
        open_milvus("frames.db", "FLAT", Videos(encoded().corpus(), heads, CPU), MADE_FROM)


def _score(keys: Ragged, queries_QD: torch.Tensor) -> Similarity:
    raise NotImplementedError


def test_a_version_changes_with_the_embeddings_and_their_count() -> None:
    rows = torch.randn(6, 4)
    changed = rows.clone()
    changed[1, 1] += 1e-6
    versions = {version_of(own) for own in (rows, changed, rows[:5], rows.repeat(2, 1), rows[[0, 0, 3, 0, 0, 5]][:6])}
    assert len(versions) == 5
    assert version_of(rows) == version_of(rows.clone())
