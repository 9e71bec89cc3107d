"""The searcher of a server is replaced when its index has changed, while it answers."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from method.runtime.errors import InputError
from method.serving import source as module
from method.serving.opening import SearchSettings, generation_of, searched_folders
from method.serving.searcher import Searcher
from method.serving.source import SearcherSource
from method.serving.web.server import make_app
from tests.helpers.search_runs import kitchen, make_searcher


class Disk:
    """An index that grows by a video with every generation, and can be broken."""

    def __init__(self) -> None:
        self.generation: object = 1
        self.videos = 3
        self.opened = 0
        self.error: Exception | None = None
        self.may_open = threading.Event()
        self.may_open.set()

    def open(self) -> Searcher:
        self.may_open.wait()
        self.opened += 1
        if self.error is not None:
            raise self.error
        return make_searcher(kitchen(self.videos))

    def grow(self, generation: object) -> None:
        self.generation, self.videos = generation, self.videos + 1


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    monkeypatch.setattr(module, "CHECK_EVERY", 0.0)
    return Disk()


def source_of(disk: Disk) -> SearcherSource:
    return SearcherSource(disk.open(), lambda: disk.generation, disk.open, disk.generation)


def settled(source: SearcherSource) -> Searcher:
    source.current()
    source.wait()
    return source.current()


def test_a_grown_index_is_searched(disk: Disk, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    source = source_of(disk)
    first = settled(source)
    assert (len(first.video_ids), disk.opened) == (3, 1)
    disk.grow(2)
    second = settled(source)
    assert (len(second.video_ids), disk.opened) == (4, 2)
    assert settled(source) is second
    assert disk.opened == 2
    assert "the index has changed: 4 videos are searched now" in caplog.text


def test_requests_are_answered_by_the_earlier_one_meanwhile(disk: Disk) -> None:
    source = source_of(disk)
    first = source.current()
    disk.grow(2)
    disk.may_open.clear()
    for _ in range(3):
        assert source.current() is first
    disk.may_open.set()
    assert len(settled(source).video_ids) == 4
    assert disk.opened == 2  # once, although it was asked for several times


@pytest.mark.parametrize("error", [InputError("test.pt: corrupt"), OSError(5, "Input/output error"), RuntimeError("x")])
def test_an_index_that_cannot_be_opened_leaves_the_earlier_one(
    disk: Disk, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    source = source_of(disk)
    first = source.current()
    disk.grow(2)
    disk.error = error
    assert settled(source) is settled(source) is first
    assert disk.opened == 2  # not tried again at once
    assert caplog.text.count("cannot be opened, so the earlier one is searched") == 1
    assert str(error) in str(source.error)
    assert ("Traceback" in caplog.text) == isinstance(error, RuntimeError)
    disk.grow(3)
    assert settled(source) is first
    disk.grow(4)
    disk.error = None
    assert len(settled(source).video_ids) == 6
    assert source.error is None


def test_an_index_that_could_not_be_opened_is_tried_again(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_AFTER", 0.0)
    source = source_of(disk)
    disk.grow(2)
    disk.error = OSError(5, "Input/output error")
    settled(source)
    disk.error = None
    source.wait()
    assert len(settled(source).video_ids) == 4


def test_an_index_that_is_gone_leaves_the_earlier_one(disk: Disk) -> None:
    source = source_of(disk)
    first = source.current()
    disk.generation = None
    assert settled(source) is first
    assert (disk.opened, source.error) == (1, None)


def test_a_loaded_text_encoder_is_kept(disk: Disk) -> None:
    source = source_of(disk)
    source.current().load_encoder()
    disk.grow(2)
    assert settled(source).has_encoder


def test_without_an_index_to_watch_nothing_is_opened() -> None:
    searcher = make_searcher(kitchen())
    assert SearcherSource(searcher).current() is searcher


def test_every_request_is_answered_by_one_searcher_during_reloads(disk: Disk) -> None:
    source = source_of(disk)
    app = make_app(source, "127.0.0.1", 100, None)
    failures: list[object] = []
    sizes: set[int] = set()
    done = threading.Event()

    def ask() -> None:
        client = app.test_client()
        while not done.is_set():
            answer = client.get("/api/search?q=a+man").get_json()
            page = client.get("/?q=a+man&top=100").get_data(as_text=True)
            if len(answer["results"]) != answer["corpus"]["videos"] or f"{page.count('<article')} of" not in page:
                failures.append(answer)
            sizes.add(answer["corpus"]["videos"])

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for generation in range(2, 10):
        disk.grow(generation)
        while len(source.current().video_ids) < disk.videos:
            source.wait()
    done.set()
    for thread in threads:
        thread.join()
    assert not failures
    assert max(sizes) > 3
    assert len(source.current().video_ids) == 11


def test_the_indexes_of_the_checkpoint_and_of_zero_shot_clip_are_watched(tmp_path: Path) -> None:
    files = SimpleNamespace(video_feat_path=tmp_path / "clip.hdf5")
    fields = {"checkpoint": tmp_path / "m.ckpt", "zero_shot": True, "index_dir": None, "files": files}
    settings = cast(SearchSettings, SimpleNamespace(**fields))
    folders = searched_folders(settings)
    assert [folder.relative_to(tmp_path).parts[0] for folder in folders] == ["m.ckpt.index", "clip.hdf5.index"]
    seen: list[object] = []
    for number, folder in enumerate([*folders, *folders]):
        seen.append(generation_of(settings))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "manifest.json").write_text("x" * number)
    seen.append(generation_of(settings))
    assert seen[:2] == [None, None]
    assert len({str(own) for own in seen[2:]}) == 3
