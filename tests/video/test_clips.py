"""Clips of videos whose every frame shows its number."""

from __future__ import annotations

import errno
import io
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from method.video import clip_tracks
from method.video.clips import TOLERANCE, read_comment, write_clip
from method.video.container import VideoError, VideoFile, to_rgb
from method.video.stills import SIZE, write_still
from tests.helpers.small_videos import read_number, set_matrix, write_video

TIMES = list(range(0, 6000, 100))
# A keyframe each half second, and only one.
OFTEN: dict[str, Any] = {"options": {"g": "5", "keyint_min": "5", "sc_threshold": "0", "bf": "2"}}
ONCE: dict[str, Any] = {"options": {"g": "600", "sc_threshold": "0"}}
VP9: dict[str, Any] = {"codec": "libvpx-vp9", "options": {"cpu-used": "8", "deadline": "realtime", "g": "5"}}
AAC: dict[str, Any] = {"audio_seconds": 6.0, "audio_codec": "aac"}
PCM: dict[str, Any] = {"audio_seconds": 6.0}


def clip(video: Path, start: float, end: float) -> tuple[Path, bool]:
    path = video.with_name(f"clip of {video.name}.mp4")
    with path.open("w+b") as file:
        return path, write_clip(video, file, start, end, "made from x")


def shown(path: Path) -> list[tuple[float, int]]:
    """Time and number of every frame."""
    with VideoFile(path, 1) as video:
        return [(float(round(at, 3)), int(read_number(to_rgb(frame)))) for at, _, frame in video.frames()]


def sound_of(path: Path) -> tuple[str, float, float]:
    """Codec of the sound, its length in seconds, and when it becomes loud."""
    with av.open(str(path)) as file:
        (stream,) = file.streams.audio
        frames = [frame.to_ndarray()[0] for frame in file.decode(stream)]
        samples = np.abs(np.concatenate(frames).astype(np.float32))
        loud = int((samples > samples.max() / 3).argmax())
        return stream.codec_context.name, len(samples) / stream.rate, loud / stream.rate


CASES: dict[str, tuple[str, dict[str, Any], bool]] = {
    "h264": ("a.mp4", OFTEN, True),
    "h264 in Matroska": ("a.mkv", OFTEN, True),
    "h264 from 5 s on": ("a.mkv", {**OFTEN, "times": [5000 + t for t in TIMES]}, True),
    "vp9": ("a.webm", VP9, True),
    "one keyframe": ("a.mp4", ONCE, False),
    "mpeg4 in AVI": ("a.avi", {"codec": "mpeg4"}, False),
    "gif": ("a.gif", {"codec": "gif", "pixels": "gray"}, False),
    "odd size": ("a.mkv", {"codec": "ffv1", "size": (47, 63)}, False),
    "ten bits": ("a.mkv", {"codec": "ffv1", "pixels": "yuv420p10le"}, False),
}


@pytest.mark.parametrize("case", CASES)
def test_a_clip_shows_the_moment(case: str, tmp_path: Path) -> None:
    """Frame k is shown from k / 10 s on; AVI files of this helper are off by one frame after a jump."""
    name, settings, copied = CASES[case]
    video = write_video(tmp_path / name, **{"times": TIMES, **settings})
    path, is_copied = clip(video, 2.75, 4.05)
    frames = shown(path)
    first, slack = frames[0][1], 1 if name.endswith("avi") else 0
    assert is_copied == copied
    assert frames[0][0] == 0
    assert (27 - 10 * TOLERANCE <= first <= 27) if copied else (27 - slack <= first <= 27)
    assert {number for _, number in frames} >= set(range(first, 41))
    assert max(number for _, number in frames) <= (43 if copied else 40)  # what the last frames refer to
    offset = Fraction(first, 10) if copied else Fraction(275, 100)
    for at, number in frames[1:]:
        assert at == pytest.approx(number / 10 - float(offset), abs=0.002 + slack / 10)
    assert read_comment(path) == "made from x"
    assert read_comment(video) is None


@pytest.mark.parametrize(("settings", "start", "length"), [
    pytest.param({**OFTEN, **AAC}, 2.5, 1.0, id="both copied"),
    pytest.param({**OFTEN, **PCM}, 2.5, 1.0, id="sound encoded"),
    pytest.param({**ONCE, **AAC}, 2.5, 1.0, id="frames encoded"),
    pytest.param({**ONCE, **PCM}, 2.5, 1.0, id="both encoded"),
])  # fmt: skip
def test_sound_is_kept_in_time(settings: dict[str, Any], start: float, length: float, tmp_path: Path) -> None:
    """It becomes loud at 3 s. A packet of AAC lasts 0.128 s here."""
    path, is_copied = clip(write_video(tmp_path / "a.mkv", TIMES, **settings), start, start + length)
    codec, seconds, loud = sound_of(path)
    assert codec == "aac"
    assert is_copied == (settings["options"] is OFTEN["options"])
    assert seconds == pytest.approx(length, abs=0.3)
    assert loud == pytest.approx(3.0 - start, abs=0.2)


@pytest.mark.parametrize("settings", [OFTEN, ONCE], ids=["copied", "encoded"])
def test_a_turned_video_stays_upright(settings: dict[str, Any], tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.mp4", TIMES, turned=1, **settings)
    set_matrix(video, (0, 1, -1, 0))
    path, is_copied = clip(video, 2.5, 3.0)
    assert is_copied == (settings is OFTEN)
    assert [number for _, number in shown(path)][:4] == [25, 26, 27, 28]


def test_the_start_and_the_end_of_a_video(tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.mp4", TIMES, **ONCE)
    whole, is_copied = clip(video, 0, 6)
    assert is_copied
    assert shown(whole) == shown(video)
    assert [number for _, number in shown(clip(video, 5.95, 9)[0])] == [59]
    uneven = write_video(tmp_path / "uneven.mp4", [0, 40, 80, 2000, 2040], **ONCE)
    assert shown(clip(uneven, 1.0, 2.02)[0]) == [(0.0, 2), (1.0, 3)]


def test_videos_that_cannot_be_cut(tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.mp4", TIMES, **ONCE)
    with pytest.raises(VideoError, match=r"no frame at 9\.0 s"):
        clip(video, 9, 10)
    (tmp_path / "cut.mp4").write_bytes(video.read_bytes()[:2000])
    (tmp_path / "text.mp4").write_text("no film")
    for name, reason in (("cut", "truncated"), ("text", "not a video"), ("none", "cannot be read")):
        for write in (write_clip, write_still):
            with pytest.raises(VideoError, match=reason):
                write(tmp_path / f"{name}.mp4", io.BytesIO(), 0, 1)


class FullDisk(io.BytesIO):
    def write(self, _: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("settings", [OFTEN, ONCE], ids=["copied", "encoded"])
def test_a_full_disk_is_no_fault_of_the_video(settings: dict[str, Any], tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.mp4", TIMES, **settings)
    with pytest.raises(OSError, match="No space left") as caught:
        write_clip(video, FullDisk(), 2.5, 3.0)
    assert caught.value.errno == errno.ENOSPC


def test_another_encoder_where_the_first_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video = write_video(tmp_path / "a.mp4", TIMES, **ONCE)
    monkeypatch.setattr(clip_tracks, "_ENCODERS", {"no_such_encoder": {}, "mpeg4": {"b": "4000000"}})
    path, _ = clip(video, 2.5, 3.0)
    assert [number for _, number in shown(path)] == [25, 26, 27, 28, 29]
    with av.open(str(path)) as file:
        assert file.streams.video[0].codec_context.name == "mpeg4"
    monkeypatch.setattr(clip_tracks, "_ENCODERS", {"no_such_encoder": {}})
    with pytest.raises(VideoError, match="none of no_such_encoder"):
        clip(video, 2.5, 3.0)


@pytest.mark.parametrize(("at", "duration", "number"), [
    (0.5, None, 30),
    (0.5, 5.0, 25),
    (0.0, None, 0),
    (1.0, None, 59),
    (0.999, 60.0, 59),
])  # fmt: skip
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_stills(name: str, at: float, duration: float | None, number: int, tmp_path: Path) -> None:
    video = write_video(tmp_path / name, [4000 + t for t in TIMES], **OFTEN)
    with (tmp_path / "a.jpg").open("wb") as file:
        write_still(video, file, at, duration)
    assert read_number(np.asarray(Image.open(tmp_path / "a.jpg"))) == number


def test_a_still_is_small_and_upright(tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.mp4", TIMES[:2], size=(480, 640), turned=1)
    set_matrix(video, (0, 1, -1, 0))
    with (tmp_path / "a.jpg").open("wb") as file:
        write_still(video, file, 0.9, None)
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.size == (SIZE[1] * 4 // 3, SIZE[1])
        assert read_number(np.asarray(image)) == 1
