"""Frames by time against videos whose every frame shows its number, and what is said of broken files."""

import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from av.video.reformatter import VideoReformatter

from method.runtime.errors import InputError
from method.video import decode
from method.video.container import RGB, to_rgb
from method.video.decode import Sampling, VideoError, find_videos, read_frames
from tests.helpers.small_videos import read_number, set_matrix, write_video

TEN_A_SECOND = list(range(0, 2000, 100))
THIRTY_A_SECOND = [round(i * 1000 / 30) for i in range(45)]
UNEVEN = [0, 40, 80, 500, 510, 900, 1300, 1333, 1400, 2000]
LOSSLESS = {"qp": "0"}
GREY_GIF: dict[str, Any] = {"codec": "gif", "pixels": "gray"}
ENCRYPTED = {
    "encryption_scheme": "cenc-aes-ctr",
    "encryption_key": "76a6c65c5ea762046bd749a2e632ccbb",
    "encryption_kid": "a7e61c373e219033c21091fa607bf3b8",
}


def numbers(path: Path, *rates: Fraction | None) -> list[list[int]]:
    """For each rate, the frames that are read."""
    found: list[list[int]] = [[] for _ in rates]
    for index, number in read_frames(path, [Sampling(rate, read_number) for rate in rates]):
        found[index].append(int(number))
    return found


def expected(times: Sequence[Fraction], end: Fraction, rate: Fraction) -> list[int]:
    """The frame shown at each (i + 0.5) / rate, one at a time, from the exact times of the frames."""
    shown: list[int] = []
    while (at := (len(shown) + Fraction(1, 2)) / rate) < end:
        shown.append(max(k for k, start in enumerate(times) if start <= at))
    return shown or [len(times) - 1]


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "mp4": ("a.mp4", {"options": {"bf": "2"}}),
    "mkv": ("a.mkv", {}),
    "webm": ("a.webm", {"codec": "libvpx-vp9", "options": {"cpu-used": "8", "deadline": "realtime"}}),
    "mov": ("a.mov", {"codec": "mpeg4"}),
    "avi": ("a.AVI", {"codec": "mpeg4"}),
    "gif": ("a.gif", GREY_GIF),
    "odd size": ("a.mkv", {"codec": "ffv1", "size": (47, 63)}),
    "ten bits": ("a.mkv", {"codec": "ffv1", "pixels": "yuv420p10le"}),
    "sound that is longer": ("a.mkv", {"audio_seconds": 3.0}),
    "a suffix of another format": ("a.mp4", {"codec": "mpeg4", "format": "matroska"}),
}


@pytest.mark.parametrize("case", CASES)
def test_frames_by_time(case: str, tmp_path: Path) -> None:
    name, settings = CASES[case]
    path = write_video(tmp_path / name, TEN_A_SECOND, **settings)
    times = [Fraction(t, 1000) for t in TEN_A_SECOND]
    found = numbers(path, Fraction(3), None, Fraction(24))
    assert found[1] == list(range(20))
    assert found[0] == expected(times, Fraction(2), Fraction(3))
    assert found[2] == expected(times, Fraction(2), Fraction(24))


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_rounded_timestamps_change_no_sample(suffix: str, tmp_path: Path) -> None:
    """At 3 a second of 30, every sample is at the very start of a frame, which Matroska rounds to milliseconds."""
    path = write_video(tmp_path / f"a.{suffix}", THIRTY_A_SECOND)
    exact = [Fraction(i, 30) for i in range(45)]
    rates = Fraction(3), Fraction(15, 8)
    assert numbers(path, *rates) == [expected(exact, Fraction(3, 2), rate) for rate in rates]
    assert numbers(path, rates[0]) == [[5, 15, 25, 35]]


@pytest.mark.parametrize("offset", [0, 5000])
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_variable_frame_rate_and_start(suffix: str, offset: int, tmp_path: Path) -> None:
    path = write_video(tmp_path / f"a.{suffix}", [offset + t for t in UNEVEN])
    found = numbers(path, Fraction(24), None)
    until_last = expected([Fraction(t, 1000) for t in UNEVEN], Fraction(2), Fraction(24))
    assert found[0][: len(until_last)] == until_last
    assert set(found[0][len(until_last) :]) <= {len(UNEVEN) - 1}
    assert found[1] == list(range(len(UNEVEN)))


TURNS = {0: (1, 0, 0, 1), 1: (0, 1, -1, 0), 2: (-1, 0, 0, -1), 3: (0, -1, 1, 0)}


@pytest.mark.parametrize("turned", TURNS)
def test_rotation_of_the_metadata_is_applied(turned: int, tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", TEN_A_SECOND[:3], turned=turned)
    set_matrix(path, TURNS[turned])
    assert numbers(path, None) == [[0, 1, 2]]
    ((_, shape),) = read_frames(path, [Sampling(Fraction(3), lambda image: torch.tensor(image.shape))])
    assert shape.tolist() == [48, 64, 3]


def test_a_mirror_of_the_metadata_is_applied(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", TEN_A_SECOND[:2])
    set_matrix(path, (-1, 0, 0, 1))
    assert numbers(path, None) == [[0, 0b10000000]]


@pytest.mark.parametrize("name", ["a.mp4", "a.gif"])
def test_one_frame_is_one_sample(name: str, tmp_path: Path) -> None:
    path = write_video(tmp_path / name, [0], **(GREY_GIF if name.endswith("gif") else {}))
    assert numbers(path, Fraction(3), None, Fraction(15, 8)) == [[0], [0], [0]]


def test_a_frame_is_converted_once_for_all_its_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mp4", TEN_A_SECOND)
    converted = []

    def convert(frame: av.VideoFrame, converter: VideoReformatter) -> RGB:
        converted.append(frame.pts)
        return to_rgb(frame, converter)

    monkeypatch.setattr(decode, "to_rgb", convert)
    assert [len(found) for found in numbers(path, Fraction(24), Fraction(3))] == [48, 6]
    assert len(converted) == 20
    converted.clear()
    numbers(path, Fraction(3))
    assert len(converted) == 6


def is_decoding() -> bool:
    return any(thread.name.startswith("decode ") for thread in threading.enumerate())


def test_it_decodes_ahead_within_bounds_and_ends_when_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "_AHEAD", 4)
    path = write_video(tmp_path / "a.mp4", TEN_A_SECOND)
    prepared = []

    def prepare(image: RGB) -> torch.Tensor:
        prepared.append(image)
        return read_number(image)

    with closing(read_frames(path, [Sampling(None, prepare)])) as frames:
        assert int(next(frames)[1]) == 0
        end = time.monotonic() + 10
        while len(prepared) < 6 and time.monotonic() < end:
            time.sleep(0.005)
        time.sleep(0.05)
        assert len(prepared) == 6  # one consumed, four in the queue, one that waits for a place
        assert is_decoding()
    assert not is_decoding()


def test_errors_of_the_thread_reach_the_consumer(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", TEN_A_SECOND)

    def fail(image: object) -> torch.Tensor:
        raise RuntimeError("in prepare")

    with pytest.raises(RuntimeError, match="in prepare"):
        list(read_frames(path, [Sampling(None, fail)]))
    assert not is_decoding()


def cut(share: float) -> Callable[[Path], object]:
    return lambda path: os.truncate(path, int(path.stat().st_size * share))


def cut_index(path: Path) -> None:
    data = path.read_bytes()
    os.truncate(path, data.index(b"moov") + (len(data) - data.index(b"moov")) // 5)


def without_video(path: Path) -> None:
    with av.open(str(path), "w", format="matroska") as file:
        sound = file.add_stream("pcm_s16le", rate=8000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        silence.sample_rate, silence.pts = 8000, 0
        file.mux(sound.encode(silence))
        file.mux(sound.encode())


def damaged(path: Path) -> None:
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 4
    for place in range(start + 900, len(data) - 900, 60):
        data[place : place + 30] = b"\xff" * 30
    path.write_bytes(data)


INDEX_FIRST = {"container": {"movflags": "faststart"}}
BROKEN: dict[str, tuple[str, dict[str, Any], Callable[[Path], object], str]] = {
    "mp4 without index": ("a.mp4", {}, cut(0.4), r"truncated: an MP4 without its index \(moov\)"),
    "mp4 with part of its index": ("a.mp4", {}, cut_index, "truncated: its index is incomplete"),
    "mp4 with its index": ("a.mp4", INDEX_FIRST, cut(0.8), r"truncated: it ends at [01]\.\d s of 2\.0 s"),
    "mkv": ("a.mkv", {}, cut(0.6), r"truncated: it ends at [01]\.\d s of 2\.0 s"),
    "webm": ("a.webm", {"codec": "libvpx"}, cut(0.6), r"truncated: it ends at [01]\.\d s of 2\.0 s"),
    "avi": ("a.avi", {"codec": "mjpeg", "pixels": "yuvj420p"}, cut(0.3), r"truncated: it ends at [01]\.\d s of 2\.0 s"),
    "gif": ("a.gif", GREY_GIF, cut(0.6), "truncated: the end of the GIF is missing"),
    "encrypted": ("a.mp4", {"container": ENCRYPTED}, lambda path: None, "encrypted"),
    "damaged": ("a.mp4", {"codec": "mjpeg", "pixels": "yuvj420p"}, damaged, r"damaged: \d+ of 20 packets"),
    "empty": ("a.mp4", {}, lambda path: path.write_bytes(b""), "empty file"),
    "text": ("a.mp4", {}, lambda path: path.write_text("no film\n" * 99), "not a video .*: text, beginning 'no film"),
    "a page": (
        "a.mkv",
        {},
        lambda path: path.write_text("<!doctype html>"),
        "not a video .*: a web page",
    ),
    "sound": ("a.mkv", {}, without_video, "no video stream"),
    "removed": ("a.mkv", {}, Path.unlink, r"cannot be read \(No such file"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_are_named(case: str, tmp_path: Path) -> None:
    name, settings, breaking, reason = BROKEN[case]
    path = write_video(tmp_path / name, TEN_A_SECOND, **settings)
    breaking(path)
    with pytest.raises(VideoError, match=f"^{reason}") as error:
        numbers(path, Fraction(3))
    assert error.value.reason == str(error.value)
    assert "\n" not in error.value.reason
    assert not is_decoding()


def test_find_videos(tmp_path: Path) -> None:
    names = ["b.mp4", "a/b.MKV", "a/c.d.Mov", "a/ü ?#%03d.avi", "z.txt", ".hidden.mp4", "a/._b.mp4", ".cache/x.mp4"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "gone.mp4").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder.mp4").mkdir()
    found = find_videos(tmp_path)
    assert list(found) == ["a/b", "a/c.d", "a/ü ?#%03d", "b"]
    assert found["a/b"] == tmp_path / "a/b.MKV"
    (tmp_path / "a/b.webm").touch()
    with pytest.raises(InputError, match=r"a/b\.MKV and .*a/b\.webm have the same id, 'a/b'"):
        find_videos(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        find_videos(tmp_path / "nowhere")


def test_a_linked_folder_is_found_once(tmp_path: Path) -> None:
    (tmp_path / "films").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.mp4").touch()
    for link in ("one", "two"):
        (tmp_path / "films" / link).symlink_to(tmp_path / "elsewhere")
    assert list(find_videos(tmp_path / "films")) == ["one/a"]


def test_names_that_are_no_addresses(tmp_path: Path) -> None:
    made = write_video(tmp_path / "a.mp4", TEN_A_SECOND[:2])
    for name in ("http:x.mp4", "%03d.mp4", "concat:a|b.mp4", "\udcff.mp4"):
        path = tmp_path / name
        path.write_bytes(made.read_bytes())
        assert numbers(path, None) == [[0, 1]]
