"""`--save_clips`: which files are cut, and under which names."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from easydict import EasyDict
from hypothesis import given
from hypothesis import strategies as st

from method import search
from method.runtime.errors import InputError
from method.serving.clips import ClipFolder, safe_name
from method.serving.flags import check_flags
from method.serving.prompt import Terminal
from method.serving.searcher import Searcher
from method.serving.videos import VideoFolder
from method.video.clips import read_comment
from tests.helpers.search_runs import make_searcher
from tests.helpers.small_videos import write_video

IDS = ["trips/lake", "trips_lake", "ä % #1 'x' \"y\"", ".hidden name", "v04", "v05"]
SECONDS = 3.0
FLAGS: dict[str, Any] = {"top_k": 1, "offset": 0, "moments_per_video": 1, "min_confidence": 0.0}
FLAGS |= {"engine": "exact", "engine_candidates": 1000, "engine_uri": None}
FLAGS |= {"sentence": [], "query_id": None, "like": None, "serve": False, "port": 0}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file for each id but the last two, of which one has a broken one and one none."""
    folder = tmp_path_factory.mktemp("videos")
    first = write_video(folder / f"{IDS[1]}.mp4", list(range(0, 3000, 100)), options={"g": "4"}, audio_seconds=SECONDS)
    (folder / "trips").mkdir()
    for name in ("trips/lake.mp4", f"{IDS[2]}.MP4", f"kept/x{IDS[3]}.mp4"):
        (folder / name).parent.mkdir(exist_ok=True)
        os.link(first, folder / name)
    (folder / "v04.mp4").write_bytes(first.read_bytes()[:1500])
    return folder


@pytest.fixture(scope="module")
def searcher() -> Searcher:
    return make_searcher({own: ["a"] for own in IDS}, dict.fromkeys(IDS, SECONDS), moments=2)


def clips_of(videos: Path, folder: Path) -> ClipFolder:
    return ClipFolder(folder, VideoFolder(videos))


def test_every_moment_gets_a_clip_once(
    videos: Path, searcher: Searcher, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clips = clips_of(videos, tmp_path / "clips")
    answer = searcher.search("a door", 6)
    found = clips.save(answer)
    expected = {
        (hit.rank, place): f"{hit.rank:02d}_{safe_name(hit.video_id)}_{m.start * 3:.1f}-{m.end * 3:.1f}.mp4"
        for hit in answer.hits if hit.video_id in IDS[:3]
        for place, m in enumerate((hit.moment, *hit.further), start=1)
    }  # fmt: skip
    assert {key: path.name for key, path in found.items()} == expected
    assert len(expected) > 3
    assert {path.name for path in clips.path.iterdir()} == {*expected.values()}
    lines = sorted(record.message for record in caplog.records if record.levelno == logging.WARNING)
    assert [line.partition(": ")[0] for line in lines] == [f"no clip of {own}" for own in (IDS[3], "v04", "v05")]
    assert "truncated" in lines[1]
    assert lines[2].endswith(f"no video file in {videos}")
    before = {path: path.stat().st_ino for path in found.values()}
    spoilt, *_ = found.values()
    spoilt.write_bytes(spoilt.read_bytes()[:500])
    assert clips.save(answer) == found
    assert read_comment(spoilt)
    assert {path: path.stat().st_ino for path in found.values() if path != spoilt} == {
        path: inode for path, inode in before.items() if path != spoilt
    }


def test_a_changed_video_is_cut_again(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    video = tmp_path / "videos" / "v.mp4"
    video.write_bytes((videos / "trips_lake.mp4").read_bytes())
    answer = make_searcher({"v": ["a"]}, {"v": SECONDS}).search("a door", 1)
    clips = clips_of(tmp_path / "videos", tmp_path / "clips")
    (path,) = clips.save(answer).values()
    before = path.stat().st_ino
    os.utime(video, (1, 1))
    clips.save(answer)
    assert path.stat().st_ino != before
    (tmp_path / "clips" / path.name).unlink()
    (tmp_path / "clips").rmdir()
    (tmp_path / "clips").write_text("in the way")
    with pytest.raises(OSError, match="clips"):
        clips.save(answer)


def test_json_has_the_paths_and_a_pipe_gets_folders(
    videos: Path,
    searcher: Searcher,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = Terminal(searcher, 6, True, clips_of(videos, tmp_path))
    lines = SimpleNamespace(buffer=io.BytesIO(b"a door\n\na/../cup\na door\n"))
    monkeypatch.setattr(sys, "stdin", lines)
    terminal.answer_lines()
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    folders = sorted(path.name for path in tmp_path.iterdir())
    assert folders == [f"{n:04d}_{safe_name(text)}" for n, text in enumerate(("a door", "a/../cup", "a door"), start=1)]
    for folder, answer in zip(folders, answers, strict=True):
        for hit in answer["results"]:
            assert hit["moments"][0] == hit["moment"]
            for moment in hit["moments"]:
                if hit["video_id"] in IDS[:3]:
                    assert Path(moment["clip"]).parent == tmp_path / folder
                    assert Path(moment["clip"]).is_file()
                else:
                    assert moment["clip"] is None


@given(st.lists(st.text(max_size=300), min_size=1, max_size=4, unique=True))
def test_names_are_safe_and_different(texts: list[str]) -> None:
    names = [safe_name(text) for text in texts]
    assert len({*names}) == len(names)
    for name in names:
        assert not {*name} & {*"/\\:*?\"<>| \n\0%#'"}
        assert len(name.encode()) <= 130
        assert name not in ("", ".", "..")


@pytest.mark.parametrize(("given", "message"), [
    ({"video_dir": None}, "--save_clips needs --video_dir DIR"),
    ({"serve": True}, "--save_clips and --serve given, expected one of them"),
    ({"video_dir": Path("nowhere")}, "--video_dir nowhere: no such folder"),
    ({"save_clips": Path(__file__)}, r"--save_clips .*: a file, expected a folder"),
])  # fmt: skip
def test_mistakes_are_named(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    more = {"save_clips": tmp_path, "video_dir": tmp_path}
    check_flags(EasyDict({**FLAGS, **more}))
    with pytest.raises(InputError, match=message):
        check_flags(EasyDict({**FLAGS, **more, **given}))


def test_without_durations_or_the_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = EasyDict({"save_clips": tmp_path, "video_dir": tmp_path})
    with pytest.raises(InputError, match="--save_clips: the durations of these videos are unknown"):
        search._clips(make_searcher({"v": ["a"]}), options)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"package av is missing; run `pip install -r requirements-video\.txt`"):
        check_flags(EasyDict({**FLAGS, **options}))
