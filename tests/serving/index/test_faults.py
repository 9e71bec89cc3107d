"""Kills, several writers and readers, full disks and damaged files: an index is as before or as it is to be."""

from __future__ import annotations

import errno
import os
import random
import resource
import select
import shutil
import signal
import threading
import traceback
import zipfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from method.evaluation.corpus import encode_corpus
from method.runtime.errors import InputError
from method.runtime.locks import exclusive_lock
from method.serving.index import snapshot as snapshot_module
from method.serving.index.segment import Segment, UnusableIndex
from method.serving.index.snapshot import Snapshot
from tests.faults.handicaps import die_at
from tests.helpers.index_world import CountingEncoder, IndexWorld, corpus_results, results_of


class Memory(CountingEncoder):
    """Has the embeddings of all videos already."""

    def encode(self, video_ids: Sequence[str], longest: Any) -> Any:
        return world_of_kills.everything.copy(video_ids), world_of_kills.features


class Killed:
    """An index of two segments with a removed video, of features of which one has changed, and what else there is."""

    def __init__(self, root: Path) -> None:
        self.world = IndexWorld(root)
        w = self.world
        w.update(*w.video_ids[:3])
        w.update(*w.video_ids)
        w.index.remove(["E05"])
        self.left = [video_id for video_id in w.video_ids if video_id != "E05"]
        w.change("E01")
        self.base = root / "base"
        shutil.copytree(w.folder, self.base)
        shutil.rmtree(w.folder)
        self.everything = w.update(*w.video_ids, *w.training)
        self.features = self.everything.manifest.segments[0].features

    def reset(self) -> None:
        shutil.rmtree(self.world.folder)
        shutil.copytree(self.base, self.world.folder)

    def update(self, *video_ids: str, named: Collection[str] | None = None, rebuild: bool = False) -> None:
        w = self.world
        w.index.update(Memory(w.model, w.reader), [*self.left, *video_ids], named=named, rebuild=rebuild)

    def add_and_merge(self) -> None:
        with patch("method.serving.index.compaction._MANY", 1):
            self.update(*self.world.training[:2])

    def content(self) -> dict[str, str]:
        """The videos of the index, and what of their features it has."""
        opened = Snapshot.open(self.world.folder)
        assert opened is not None
        opened.verify()
        return {video_id: opened.digest(video_id) for video_id in opened.video_ids}


world_of_kills: Killed


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Killed:
    global world_of_kills
    world_of_kills = Killed(tmp_path_factory.mktemp("killed"))
    return world_of_kills


@pytest.fixture
def world(tmp_path: Path) -> IndexWorld:
    CountingEncoder.encoded = []
    return IndexWorld(tmp_path)


CHANGES: dict[str, Callable[[Killed], object]] = {
    "add and replace": lambda killed: killed.update(*killed.world.training[:2]),
    "add and merge": lambda killed: killed.add_and_merge(),
    "remove": lambda killed: killed.world.index.remove(["E00"]),
    "compact": lambda killed: killed.world.index.compact(),
    "rebuild": lambda killed: killed.update(rebuild=True),
    "calibrate": lambda killed: killed.world.index.calibrate({"a": 1}),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_kill_at_any_step_leaves_the_old_or_the_new_index(killed: Killed, name: str) -> None:
    killed.reset()
    before, operation, died = killed.content(), 0, True
    CHANGES[name](killed)
    after = killed.content()
    while died:
        killed.reset()
        died = _is_killed(lambda: CHANGES[name](killed), operation)
        content = killed.content()
        assert content in (before, after)
        assert died or content == after
        killed.world.index.calibrate({"b": 2})  # cleans up
        assert killed.content() == content
        assert {path.name for path in killed.world.folder.iterdir()} == {
            ".lock",
            "manifest.json",
            *(entry.name for entry in killed.world.manifest().segments),
        }
        operation += 1
    assert operation > 4


def test_what_a_killed_first_writer_left_is_gone_before_the_next_writes(world: IndexWorld) -> None:
    """The next may be killed between the manifest and its own cleaning up."""
    part, operation, died = world.folder / ".segment-1.keys.a.part", 0, True
    while died:
        shutil.rmtree(world.folder, ignore_errors=True)
        world.folder.mkdir()
        part.touch()
        died = _is_killed(world.update, operation)
        assert not part.exists() or not (world.folder / "manifest.json").exists()
        operation += 1
    assert operation > 4
    assert not list(world.folder.glob(".*.part"))


def _is_killed(change: Callable[[], object], operation: int) -> bool:
    """Make a change in another process that is killed before an operation, if it comes so far."""

    def change_and_die() -> None:
        die_at(operation)
        change()

    _, status = os.waitpid(_forked(change_and_die), 0)
    assert status in (0, signal.SIGKILL)
    return status == signal.SIGKILL


def _forked(work: Callable[[], object]) -> int:
    """The id of a process that does this and exits, with status 1 if it raised."""
    if process := os.fork():
        return process
    try:
        torch.set_num_threads(1)
        work()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def test_readers_beside_a_writer(killed: Killed) -> None:
    """What is opened while another process adds, removes and compacts is whole, and stays so."""
    killed.reset()
    expected = corpus_results(killed.everything.select(killed.left[:1] + killed.left[2:]))
    enough, seen_enough = os.pipe()  # closed by the reader

    def write() -> None:
        os.close(seen_enough)
        while not select.select([enough], [], [], 0)[0]:
            killed.update(*killed.world.training[:2], named=killed.world.training[:2])
            killed.world.index.remove(killed.world.training[:2])
            killed.world.index.compact()

    process = _forked(write)
    os.close(enough)
    opened: list[Snapshot] = []
    try:
        while os.waitpid(process, os.WNOHANG) == (0, 0) and len({one.generation for one in opened}) < 8:
            one = Snapshot.open(killed.world.folder)
            assert one is not None
            opened.append(one)
    finally:
        os.close(seen_enough)
    assert os.waitpid(process, 0) == (process, 0)
    for one in random.Random(0).sample(opened, 5):
        one.verify()
        assert results_of(one, killed.left[:1] + killed.left[2:]) == expected


def test_a_reader_that_comes_too_late_for_a_segment_reads_the_new_manifest(
    killed: Killed, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed.reset()

    def late(path: Path) -> Segment:
        monkeypatch.undo()
        killed.world.index.compact()
        return Segment(path)

    monkeypatch.setattr(snapshot_module, "Segment", late)
    opened = Snapshot.open(killed.world.folder)
    assert opened is not None
    assert opened.generation == killed.world.manifest().generation
    assert len(opened.segments) == 1
    opened.segments[0].path.unlink()
    with pytest.raises(UnusableIndex, match=r"segment-.*: missing, but manifest.json names it; rebuild it"):
        Snapshot.open(killed.world.folder)


def test_of_several_writers_one_encodes_and_the_others_wait(world: IndexWorld) -> None:
    # Each open of the lock file is a holder of its own, in threads as in processes.
    world.folder.mkdir(parents=True)
    found: list[Snapshot] = []
    threads = [threading.Thread(target=lambda: found.append(world.update())) for _ in range(3)]
    with exclusive_lock(world.folder / ".lock", "busy"):
        for thread in threads:
            thread.start()
        assert not CountingEncoder.encoded
    for thread in threads:
        thread.join()
    assert sorted(CountingEncoder.encoded) == sorted(world.video_ids)
    assert [one.generation for one in found] == [1, 1, 1]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_any_history_gives_what_one_made_at_once_gives(tmp_path: Path, seed: int) -> None:
    rng, world = random.Random(seed), IndexWorld(tmp_path)
    there: set[str] = set()
    removed: set[str] = set()
    for _ in range(14):
        change = rng.choice(["add", "add", "replace", "remove", "name", "compact"])
        some = rng.sample(world.video_ids, rng.randint(1, 4))
        if change in ("add", "replace"):
            if change == "replace":
                world.change(*some)
            world.update(*some)
            there |= set(some) - removed
        elif change == "remove" and there:
            gone = rng.sample(sorted(there), min(len(there), 2))
            world.index.remove(gone)
            there, removed = there - set(gone), removed | set(gone)
        elif change == "name":
            world.update(*world.video_ids, named=some)
            there, removed = there | set(some), removed - set(some)
        elif change == "compact" and there:
            world.index.compact()
            assert len(world.segments()) == 1
    rng.shuffle(world.video_ids)
    asked = [video_id for video_id in world.video_ids if video_id in there]
    snapshot = world.update(*asked)  # those whose features have changed meanwhile included
    assert set(snapshot.video_ids) == there
    assert set(snapshot.manifest.excluded) == removed
    assert results_of(snapshot, asked) == corpus_results(world.encode(asked))


# Files


@pytest.mark.parametrize("damage", ["bit", "cut", "zeros"])
def test_damaged_files_are_refused_or_without_effect(killed: Killed, damage: str) -> None:
    rng = random.Random(0)
    killed.reset()
    expected, refused = killed.content(), 0
    for path in sorted(killed.world.folder.glob("[!.]*")):
        whole = path.read_bytes()
        for place in [0, len(whole) - 1, *(rng.randrange(len(whole)) for _ in range(20))]:
            broken = bytearray(whole)
            if damage == "bit":
                broken[place] ^= 1 << rng.randrange(8)
            elif damage == "cut":
                del broken[place:]
            else:
                broken[place : place + 64] = bytes(len(broken[place : place + 64]))
            path.write_bytes(broken)
            found = _content_or_refusal(killed)
            if isinstance(found, str):
                refused += str(killed.world.folder) in found and "rebuild it with --rebuild" in found
            else:
                assert found == expected
        path.write_bytes(whole)
    assert killed.content() == expected
    assert refused > 50


def _content_or_refusal(killed: Killed) -> dict[str, str] | str:
    try:
        return killed.content()
    except UnusableIndex as error:
        return str(error)


def test_a_damaged_index_is_rebuilt(killed: Killed) -> None:
    killed.reset()
    for path in killed.world.folder.glob("[!.]*"):
        path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UnusableIndex):
        killed.update()
    killed.update("E05", rebuild=True)
    assert len(killed.content()) == 8


def test_a_full_disk_is_named_and_leaves_the_index(world: IndexWorld) -> None:
    before = world.update(*world.video_ids[:1])
    kept = sorted(path.name for path in world.folder.iterdir())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)) as caught:
            world.update()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    assert str(caught.value.filename).startswith(str(world.folder / "segment-"))
    assert sorted(path.name for path in world.folder.iterdir()) == kept
    again = Snapshot.open(world.folder)
    assert again is not None
    assert again.generation == before.generation


def test_features_that_change_while_they_are_read_are_not_kept(
    world: IndexWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = encode_corpus

    def slowly(*arguments: Any) -> Any:
        corpus = real(*arguments)
        os.utime(world.data.features, ns=(0, 0))
        return corpus

    monkeypatch.setattr("method.serving.index.encoding.encode_corpus", slowly)
    with pytest.raises(InputError, match=r"hdf5: modified while it was being read"):
        world.update()
    assert not world.segments()


def test_index_files_of_earlier_versions_are_replaced(world: IndexWorld, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    world.folder.mkdir(parents=True)
    old = world.folder / "test.pt"
    torch.save({"format": "A3PRVR index", "version": 2, "keys": {"action": torch.ones(2)}}, old)
    old.with_suffix(".lock").touch()
    torch.save({"model": torch.ones(2)}, world.folder / "train.pt")
    with zipfile.ZipFile(world.folder / "both.pt", "w") as other:
        other.writestr("data", "of someone")
    world.update()
    assert f"removed {old}, an index of an earlier version" in caplog.text
    assert not old.exists()
    assert not old.with_suffix(".lock").exists()
    assert (world.folder / "train.pt").exists()
    assert (world.folder / "both.pt").exists()


def test_an_index_runs_nothing_that_is_in_it(world: IndexWorld, tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "harm"),)

    world.folder.mkdir(parents=True)
    torch.save({"format": "A3PRVR index", "harm": Harm()}, world.folder / "test.pt")
    world.update()
    for path in world.segments():
        torch.save(Harm(), path)
    with pytest.raises(UnusableIndex):
        world.update()
    assert not (tmp_path / "harm").exists()
