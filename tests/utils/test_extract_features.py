"""Features of a folder that grows, shrinks, fails and is interrupted, by encoders that are not networks."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from method.config.options import read_options
from method.data.features import FeatureFile
from method.data.provenance import list_videos, read_description, read_durations
from method.runtime.errors import InputError
from method.video.feature_store import FeatureStore
from tests.faults.programs import Program, Starter
from tests.helpers import fake_encoders
from tests.helpers.fake_encoders import RATE, WEIGHTS, WIDTHS
from tests.helpers.small_dataset import own_log_handlers
from utils import extract_features


class Folder:
    """A folder of videos, and what is extracted from it."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.root, self.patch = root, patch
        self.videos, self.log = root / "videos", root / "log"
        self.features = root / "dataset/mine_i3d/FeatureData/mine_clip_i3d_numpy.hdf5"
        self.parts = self.features.with_name(f"{self.features.name}.parts")
        for name in ("a", "b", "inner/c d"):
            self.write(name, f"video {name}")

    def write(self, name: str, content: str) -> Path:
        path = self.videos / f"{name}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        return path

    def extract(self, *flags: str, weights: Mapping[str, str] = WEIGHTS) -> None:
        fake_encoders.install(self.patch, self.log, weights)
        with own_log_handlers():
            extract_features.main(self.arguments(*flags))

    def arguments(self, *flags: str) -> list[str]:
        return [str(self.videos), "--dataset_name", "mine", "--root_path", str(self.root), "--device", "-1", *flags]

    def command(self, seconds: float) -> list[str]:
        """Arguments of `tests.helpers.fake_encoders` with encoders that take this long."""
        return [str(self.log), str(seconds), *self.arguments()[:-2]]

    def wait_for(self, encoded: int, program: Program) -> None:
        """Wait until a program has begun to encode so many videos."""
        while not self.log.exists() or len(self.log.read_text().splitlines()) < encoded:
            time.sleep(0.002)
            assert program.is_running

    def encoded(self) -> Counter[str]:
        """How often each file was encoded since the last call."""
        names = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return Counter(names)

    def expect_features_of(self, *names: str) -> None:
        """Exactly these videos have features, those of the files as they are, and nothing else is left."""
        assert sorted(list_videos(self.features, WIDTHS)) == sorted(names)
        file = FeatureFile(self.features)
        for name in names:
            content = (self.videos / f"{name}.mp4").read_bytes()
            rng = np.random.default_rng(list(content))
            for key, width in WIDTHS.items():
                expected = rng.standard_normal((len(content), width), dtype=np.float32)
                assert np.array_equal(file.read(f"{name}/{key}", width), expected)
        seconds = {name: len((self.videos / f"{name}.mp4").read_bytes()) / RATE for name in names}
        assert read_durations(self.features, names) == seconds
        assert [path.name for path in self.features.parent.iterdir()] == [self.features.name]


@pytest.fixture(scope="module")
def starter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Starter]:
    with Starter(tmp_path_factory.mktemp("programs"), leave_quickly=True) as starter:
        yield starter


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    return Folder(tmp_path, monkeypatch)


WITH_FAKES = "tests.helpers.fake_encoders"
ALL = ("a", "b", "inner/c d")


def test_the_published_layout_and_a_dataset_are_written(folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    folder.extract()
    folder.expect_features_of(*ALL)
    assert capsys.readouterr().out == f"{folder.features}: features of 3 of 3 videos, recipe charades\n"
    with h5py.File(folder.features) as file:
        assert file["inner/c d/i3d_feat"].dtype == np.float32
    description = read_description(folder.features)
    assert description is not None
    assert (description["recipe"], description["streams"]["clip_feat"]["rate"]) == ("charades", RATE)
    options = read_options(["--dataset_name", "mine", "--root_path", str(folder.root)])
    assert (options.video_feat_path, options.feature_recipe) == (folder.features, "charades")
    assert (options.visual_feat_dim, options.visual_flow_feat_dim, options.fusion_positions) == (10, 6, True)


def test_a_folder_grows_shrinks_and_changes(folder: Folder) -> None:
    folder.extract()
    assert folder.encoded().total() == 3
    state = folder.features.stat()
    folder.extract()
    assert folder.encoded() == {}
    assert folder.features.stat() == state

    folder.write("new", "a new one")
    (folder.videos / "a.mp4").unlink()
    folder.write("b", "longer than before")
    folder.extract()
    folder.expect_features_of("b", "inner/c d", "new")
    assert folder.encoded() == {"new.mp4": 1, "b.mp4": 1}
    assert folder.features.stat().st_ino != state.st_ino  # caches and indexes notice by size and times

    same_size = folder.write("b", "LONGER than before")
    folder.extract()
    folder.expect_features_of("b", "inner/c d", "new")
    assert folder.encoded() == {"b.mp4": 1}

    os.utime(same_size)
    (folder.videos / "new.mp4").rename(folder.videos / "inner" / "renamed.mp4")
    folder.extract()
    folder.expect_features_of("b", "inner/c d", "inner/renamed")
    assert folder.encoded() == {}  # the content is the same


def test_a_folder_may_have_the_name_of_a_video(folder: Folder) -> None:
    folder.write("a/inner", "below the group of a")
    folder.write("a/inner/i3d", "and below that")
    folder.extract()
    folder.expect_features_of(*ALL, "a/inner", "a/inner/i3d")
    (folder.videos / "a.mp4").unlink()
    folder.extract()
    folder.expect_features_of("b", "inner/c d", "a/inner", "a/inner/i3d")


def test_failures_are_listed_and_tried_again(folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    folder.write("broken", "bad file")
    folder.write("x/clip_feat/y", "a name that HDF5 has for a stream")
    odd = folder.write(os.fsdecode(b"caf\xe9"), "a name in another encoding")
    for _ in range(2):
        with pytest.raises(SystemExit, match="1"):
            folder.extract()
        out, err = capsys.readouterr()
        assert "features of 3 of 6 videos" in out
        assert "failed: caf\\udce9: its name is not UTF-8; rename it\n" in err
        assert "failed: broken: truncated at 2 s\n" in err
        assert "failed: x/clip_feat/y: clip_feat in its path is the name of a stream; rename it\n" in err
    assert sorted(list_videos(folder.features, WIDTHS)) == sorted(ALL)
    folder.write("broken", "good file")
    (folder.videos / "x/clip_feat").rename(folder.videos / "x/y")
    odd.unlink()
    folder.extract()
    folder.expect_features_of(*ALL, "broken", "x/y/y")
    folder.write("a", "bad now")  # its features would be those of another file
    with pytest.raises(SystemExit, match="1"):
        folder.extract()
    assert "a" not in list_videos(folder.features, WIDTHS)


@pytest.mark.parametrize(("rows", "reason"), [(np.nan, "i3d_feat has NaN or infinity"), (None, "no rows of i3d_feat")])
def test_features_that_are_none_are_a_failure(
    folder: Folder, capsys: pytest.CaptureFixture[str], rows: float | None, reason: str
) -> None:
    broken = np.full((0 if rows is None else 3, 10), rows or 0, np.float32)
    folder.patch.setattr(fake_encoders.FakeEncoders, "encode", lambda self, path: {"i3d_feat": broken})
    with pytest.raises(SystemExit, match="1"):
        folder.extract()
    assert f"failed: a: {reason}\n" in capsys.readouterr().err
    assert not folder.features.exists()


def test_a_file_that_changes_while_it_is_read_is_a_failure(folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    encode = fake_encoders.FakeEncoders.encode

    def encode_while_it_grows(self: fake_encoders.FakeEncoders, path: Path) -> dict[str, Any]:
        features = encode(self, path)
        if path.stem == "a":
            path.write_text("grown meanwhile")
        return features

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fake_encoders.FakeEncoders, "encode", encode_while_it_grows)
        with pytest.raises(SystemExit, match="1"):
            folder.extract()
    assert "failed: a: changed while it was read\n" in capsys.readouterr().err
    folder.extract()
    folder.expect_features_of(*ALL)


def test_the_speed_is_logged_where_there_is_no_progress_bar(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("method.video.extraction.time.monotonic", itertools.count(0, 90).__next__)
    folder.extract()
    lines = [message for message in caplog.messages if "an hour" in message]
    assert lines == [
        "1 of 3 videos, 40 an hour, about 3 minutes left",
        "2 of 3 videos, 40 an hour, about 2 minutes left",
    ]


@pytest.mark.parametrize(("flags", "message"), [
    ([], r"i3d/rgb_charades\.pt: no such file; run `python utils/download_encoders.py i3d`, or name"),
    (["--recipe", "activitynet"], r"i3d/rgb_imagenet\.pt: no such file; run"),
    (["--streams", "clip_feat"], "clip-vit-base-patch32: no such folder"),
    (["--recipe", "tvr"], "--recipe tvr: not offered"),
    (["--dataset_name", "a/b"], "--dataset_name 'a/b': expected the name of a folder"),
    (["--root_path", "nowhere"], "--root_path nowhere: no such folder"),
    (["--streams", "audio_feat"], "invalid choice: 'audio_feat'"),
])  # fmt: skip
def test_mistakes_are_one_line_errors(folder: Folder, flags: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message), own_log_handlers():
        extract_features.main(folder.arguments(*flags))
    assert not folder.features.parent.exists()


def test_the_decoder_is_optional(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"package av is missing; run `pip install -r requirements-video\.txt`"):
        folder.extract()


def test_nothing_readable(folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ALL:
        folder.write(name, "bad")
    with pytest.raises(SystemExit, match="1"):
        folder.extract()
    assert "features of 0 of 3 videos" in capsys.readouterr().out
    assert not folder.features.exists()


def test_features_of_two_ways_are_never_mixed(folder: Folder) -> None:
    folder.extract()
    before = folder.features.read_bytes()
    folder.write("new", "a new one")
    for flags, weights, named in (
        (["--recipe", "activitynet"], WEIGHTS, "recipe charades, and these would be of recipe activitynet;"),
        (
            [],
            {**WEIGHTS, "clip_feat": "99"},
            r"SHA-256 c11b00000000.*would be .*SHA-256 990000000000",
        ),
        (["--streams", "clip_feat"], WEIGHTS, r"i3d_feat by .*would be of recipe charades \(clip_feat by"),
    ):
        with pytest.raises(InputError, match=named):
            folder.extract(*flags, weights=weights)
    assert folder.features.read_bytes() == before
    folder.features.unlink()
    folder.extract("--recipe", "activitynet")
    assert read_options(["--dataset_name", "mine", "--root_path", str(folder.root)]).feature_recipe == "activitynet"
    folder.encoded()
    folder.extract()  # the recipe of the features is the default
    assert folder.encoded() == {}


def test_unfinished_features_are_not_mixed_either(folder: Folder) -> None:
    folder.patch.setattr(FeatureStore, "merge", lambda self, videos: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        folder.extract()
    with pytest.raises(InputError, match=r"parts: holds features of recipe charades .*of recipe activitynet"):
        folder.extract("--recipe", "activitynet")


@pytest.mark.parametrize(("content", "message"), [
    (None, "does not say how its features were made"),
    (b"no HDF5", "not a readable HDF5 file"),
], ids=["released", "damaged"])  # fmt: skip
def test_other_files_are_not_added_to(folder: Folder, content: bytes | None, message: str) -> None:
    folder.features.parent.mkdir(parents=True)
    if content is None:
        with h5py.File(folder.features, "w") as file:
            file["video/i3d_feat"] = np.zeros((2, 10), np.float32)
    else:
        folder.features.write_bytes(content)
    before = folder.features.read_bytes()
    with pytest.raises(InputError, match=message):
        folder.extract()
    assert folder.features.read_bytes() == before


def test_a_folder_of_other_videos_does_not_replace_them(folder: Folder) -> None:
    folder.extract()
    folder.videos = folder.root / "others"
    with pytest.raises(InputError, match="no such folder"):
        folder.extract()
    folder.videos.mkdir()
    with pytest.raises(InputError, match="others: no videos in this folder or below"):
        folder.extract()
    folder.write("z", "something else of another length")
    with pytest.raises(InputError, match=r"features of 3 other videos, such as 'a', and .*others has none of them"):
        folder.extract()
    (folder.root / "videos").rename(folder.videos / "videos")
    folder.encoded()
    folder.extract()
    folder.expect_features_of("z", *(f"videos/{name}" for name in ALL))
    assert folder.encoded() == {"z.mp4": 1}


def test_one_stream_is_a_dataset_of_one_branch(folder: Folder) -> None:
    folder.extract("--streams", "clip_feat")
    options = read_options(["--dataset_name", "mine", "--root_path", str(folder.root)])
    assert (options.action_branch, options.phrase_action_branch, options.cross_branch_fusion) == (False, True, False)


def test_killed_at_any_moment_it_continues(folder: Folder, starter: Starter) -> None:
    """Of a video that was under way, and of no other, the work is done again."""
    names = [*ALL, *(f"v{number}" for number in range(5))]
    for name in names:
        folder.write(name, f"video {name}")
    for done in (1, 3):
        program = starter.start(WITH_FAKES, folder.command(0.1))
        folder.wait_for(2 * done, program)
        program.kill()
        assert not folder.features.exists()
    for part in list(folder.parts.glob("*.npz"))[:1]:
        part.write_bytes(part.read_bytes()[:-40] + bytes(40))  # and one is damaged
    folder.extract()
    folder.expect_features_of(*names)
    assert folder.encoded().total() <= len(names) + 3


def test_killed_between_any_two_operations_it_continues(folder: Folder, starter: Starter) -> None:
    """Just before a change to a folder or the flush of a file, those of merging a second time included."""
    folder.extract()
    folder.write("b", "longer than before")
    (folder.videos / "a.mp4").unlink()
    for step in itertools.count(0, 2):
        folder.write("new", f"new at step {step}")
        outcome = starter.start(WITH_FAKES, folder.command(0), {"die_at": (step,)}).wait()
        assert list_videos(folder.features, WIDTHS)
        if outcome.status == 0:
            break
        assert outcome.status == -9, outcome.show()
    assert step > 8
    folder.extract()
    folder.expect_features_of("b", "inner/c d", "new")


def test_interrupted_from_the_keyboard(folder: Folder, starter: Starter) -> None:
    program = starter.start(WITH_FAKES, folder.command(30))
    folder.wait_for(1, program)
    program.send(signal.SIGINT)
    outcome = program.wait()
    assert outcome.status == 130
    assert outcome.log.endswith("stopped; what is extracted is kept, and the same command continues\ninterrupted\n")


@pytest.mark.parametrize("limit", [3_000, 12_000], ids=["a part", "the feature file"])
def test_a_full_disk_is_reported_and_loses_nothing(folder: Folder, starter: Starter, limit: int) -> None:
    """By a limit on the size of files: of the parts, which have 4 KB each, or of the feature file."""
    folder.extract()
    folder.encoded()
    new = [f"v{number}" for number in range(8)]
    for name in new:
        folder.write(name, "x" * 60 + name)
    before = folder.features.read_bytes()
    outcome = starter.start(WITH_FAKES, folder.command(0), limits={"RLIMIT_FSIZE": limit}).wait()
    outcome.expect_refused(": File too large")
    assert folder.features.read_bytes() == before
    assert not [*folder.features.parent.glob(".*.part"), *folder.parts.glob(".*.part")]
    merging = limit == 12_000
    assert folder.encoded().total() == (8 if merging else 1)
    folder.extract()
    folder.expect_features_of(*ALL, *new)
    assert folder.encoded().total() == (0 if merging else 8)


def test_two_processes_share_a_folder(folder: Folder, starter: Starter) -> None:
    new = [f"v{number}" for number in range(6)]
    for name in new:
        folder.write(name, f"video {name}")
    folder.write("broken", "bad file")
    for program in [starter.start(WITH_FAKES, folder.command(0.1)) for _ in range(2)]:
        outcome = program.wait()
        assert outcome.status == 1, outcome.show()
        assert "features of 9 of 10 videos" in outcome.output
        assert "failed: broken: truncated at 2 s" in outcome.log
    assert len(list(folder.parts.glob("*.failed"))) == 1  # for a third process that has not seen it yet
    assert set(folder.encoded().values()) == {1}
    (folder.videos / "broken.mp4").unlink()
    folder.extract()
    folder.expect_features_of(*ALL, *new)


@pytest.mark.parametrize("broken", [False, True])
def test_ranks_share_a_folder(folder: Folder, starter: Starter, broken: bool) -> None:
    new = [f"v{number}" for number in range(4)]
    for name in new:
        folder.write(name, f"video {name}")
    if broken:
        folder.write("broken", "bad file")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ranks = [
        starter.start(
            "tests.helpers.distributed_worker", [str(rank), "2", port, "{}", WITH_FAKES, *folder.command(0.1)]
        )
        for rank in range(2)
    ]
    first, second = [rank.wait() for rank in ranks]
    assert (first.status, second.status) == (int(broken), int(broken)), first.show()
    assert first.output == f"{folder.features}: features of 7 of {7 + broken} videos, recipe charades\n"
    assert ("failed: broken: truncated at 2 s" in first.log) == broken
    assert (second.output, second.log) == ("", "")
    assert set(folder.encoded().values()) == {1}
    if not broken:
        folder.expect_features_of(*ALL, *new)
