"""From rows to captions, splits and moments, checked against the features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from method.runtime.errors import InputError
from utils.captions.plan import Plan, draw_split, find_videos, make_plan
from utils.captions.table import Row

IDS = ["a", "b", "folder/c d", "v1.0", "cut#1", "short"]
FRAMES = {"i3d_feat": (5, 4), "clip_feat": (3, 2)}


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("features") / "features.hdf5"
    with h5py.File(path, "w") as file:
        for video_id in IDS:
            for key, shape in FRAMES.items():
                file[f"{video_id}/{key}"] = np.ones(shape, np.float32)
            if video_id != "short":
                file[video_id].attrs["duration"] = 10.0
        file["half/i3d_feat"] = np.ones((5, 4), np.float32)
    return path


def row(line: int, video: str, **values: Any) -> Row:
    given = {"sentence": f"sentence {line}", "start": None, "end": None, "duration": None, "split": None, **values}
    return Row(line, video, **given)


def plan(features: Path, *rows: Row, fraction: float = 0.2, skip: bool = False) -> Plan:
    videos = find_videos(features, [own.video for own in rows])
    return make_plan(Path("table.csv"), rows, videos, features, fraction, skip)


def test_what_the_features_say(features: Path) -> None:
    names = ["a", "b.MP4", "folder/c d.mkv", "./a.mov", "v1.0", "v1", "/a", "folder", "half", "", ".", "a/i3d_feat"]
    videos = find_videos(features, names)
    assert videos.names == {
        "a": "a", "b.MP4": "b", "folder/c d.mkv": "folder/c d", "./a.mov": "a", "v1.0": "v1.0"
    }  # fmt: skip
    assert (videos.widths, videos.longest) == ({"i3d_feat": 4, "clip_feat": 2}, 5)
    assert videos.durations == dict.fromkeys(("a", "b", "folder/c d", "v1.0"), 10.0)


def test_a_file_with_one_stream(features: Path) -> None:
    assert find_videos(features, ["half", "a"]).names == {"a": "a"}
    assert find_videos(features, ["half"]).widths == {"i3d_feat": 4}
    assert find_videos(features, ["nowhere"]).widths == {}


def test_captions_are_numbered_within_their_video(features: Path) -> None:
    found = plan(
        features,
        row(2, "a", split="train"),
        row(3, "folder/c d", split="test", start=1.0, end=10.6),
        row(4, "a.mp4", start=2.0, end=3.0),
        row(5, "folder/c d"),
    )
    assert [own.id for own in found.captions["train"]] == ["a#enc#0", "a#enc#1"]
    assert [own.id for own in found.captions["test"]] == ["folder/c d#enc#0", "folder/c d#enc#1"]
    assert found.captions["test"][0].text == "sentence 3"
    (clipped, inside) = (found.moments[own] for own in ("folder/c d#enc#0", "a#enc#1"))
    assert (clipped.start, clipped.end, clipped.duration) == (1.0, 10.0, 10.0)
    assert (inside.start, inside.end, inside.duration) == (2.0, 3.0, 10.0)
    assert found.drawn == {"train": 0, "test": 0}


def test_a_duration_of_the_table_serves_where_the_features_have_none(features: Path) -> None:
    found = plan(
        features,
        row(2, "short", split="test", start=3.0, end=4.0, duration=5.0),
        row(3, "a", split="train", duration=3.0),
    )
    assert found.moments["short#enc#0"].duration == 5.0


@pytest.mark.parametrize(("rows", "message"), [
    ([row(2, "a"), row(5, "nowhere"), row(6, "half")],
     r"2 wrong rows: line 5: no video 'nowhere' in .*features\.hdf5; line 6: no video 'half'"),
    ([row(2, "cut#1"), row(3, "a")], "line 2: the id of video 'cut#1' has a '#', .*rename the video"),
    ([row(2, "a", start=10.0, end=10.5)], "line 2: start 10, end 10.5: video 'a' is 10 seconds long"),
    ([row(2, "a", start=9.0, end=11.5)], "line 2: start 9, end 11.5: video 'a' is 10 seconds long"),
    ([row(2, "short", start=0.0, end=1.0)], "line 2: no duration of video 'short': add a column duration"),
    ([row(2, "a", split="train"), row(3, "b", split="test"), row(4, "a.mp4", split="test")],
     "line 4: video 'a' is in split test, and in train on line 2"),
    ([row(2, "a", split="train"), row(3, "b", split="train")], "no video in split test"),
    ([row(2, "a", split="test")], "no video in split train"),
    ([row(2, "a")], "no video in split test|no video in split train"),
])  # fmt: skip
def test_wrong_rows(features: Path, rows: list[Row], message: str) -> None:
    with pytest.raises(InputError, match=rf"^table\.csv: ({message})"):
        plan(features, *rows)


def test_videos_without_features_can_be_left_out(features: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [row(2, "a", split="train"), row(3, "gone"), row(4, "gone"), row(5, "b", split="test")]
    found = plan(features, *rows, skip=True)
    assert [len(found.captions[split]) for split in ("train", "test")] == [1, 1]
    assert "1 videos are not in" in caplog.text
    assert "their 2 sentences are left out: 'gone'" in caplog.text
    with pytest.raises(InputError, match="no video 'gone'"):
        plan(features, row(2, "gone"), skip=True)


def test_the_drawn_split_is_stable_and_of_its_size() -> None:
    ids = [f"video {number}" for number in range(2000)]
    split = draw_split(ids, 0.2)
    assert split == draw_split(reversed(ids), 0.2)
    assert 350 < list(split.values()).count("test") < 450
    few = draw_split(ids[:500], 0.2)
    assert {own: split[own] for own in few} == few
    smaller = draw_split(ids, 0.1)
    assert {own for own in ids if smaller[own] == "test"} < {own for own in ids if split[own] == "test"}


@pytest.mark.parametrize(("fraction", "others", "expected"), [
    (1e-9, (), {"train", "test"}),
    (1 - 1e-9, (), {"train", "test"}),
    (1e-9, ("test",), {"train"}),
    (1 - 1e-9, ("train",), {"test"}),
])  # fmt: skip
def test_a_drawn_split_has_both_sides(fraction: float, others: tuple[Any, ...], expected: set[str]) -> None:
    assert {*draw_split(["a", "b", "c"], fraction, others).values()} == expected


@pytest.mark.parametrize(("damage", "message"), [
    (lambda file: file.create_dataset("a/clip_feat", data=np.ones((3, 7))), r"clip_feat' has shape \(3, 7\), expected"),
    (lambda file: file.create_dataset("a/clip_feat", data=np.ones(3)), r"clip_feat' has shape \(3,\)"),
])  # fmt: skip
def test_wrong_features(tmp_path: Path, features: Path, damage: Any, message: str) -> None:
    path = tmp_path / "copy.hdf5"
    path.write_bytes(features.read_bytes())
    with h5py.File(path, "a") as file:
        del file["a/clip_feat"]
        damage(file)
    with pytest.raises(InputError, match=message):
        find_videos(path, ["b", "a"])
    path.write_bytes(b"no HDF5")
    with pytest.raises(InputError, match=r"copy\.hdf5: not a readable HDF5 file"):
        find_videos(path, ["a"])
