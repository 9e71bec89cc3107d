"""Pictures and clips of moments on the page."""

from __future__ import annotations

import io
import os
import re
import threading
import time
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
import pytest
from flask.testing import FlaskClient
from PIL import Image

from method.serving.source import SearcherSource
from method.serving.web import extracts as module
from method.serving.web.extracts import Extracts
from method.serving.web.server import make_app
from method.video.files import MIME_TYPES
from tests.helpers.search_runs import make_searcher
from tests.helpers.small_videos import read_number, write_video

ODD = "some folder/ä % #1 'x' \"y\"?"
IDS = [ODD, "v01", "broken", "none", "gif"]
SECONDS = 3.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    video = write_video(folder / "v01.avi", list(range(0, 3000, 100)), codec="mpeg4")
    write_video(folder / f"{ODD}.mp4", list(range(0, 3000, 100)), options={"g": "4"})
    (folder / "broken.mkv").write_bytes(video.read_bytes()[:200])
    (folder / "gif.gif").write_bytes(b"GIF89a")
    (tmp_path / "secret.mp4").write_bytes((folder / f"{ODD}.mp4").read_bytes())
    return folder


@pytest.fixture
def client(folder: Path) -> FlaskClient:
    searcher = make_searcher({own: ["a"] for own in IDS}, dict.fromkeys(IDS, SECONDS), moments=2)
    return make_app(SearcherSource(searcher), "127.0.0.1", 5, folder, folder.parent / "extracts").test_client()


def addresses(client: FlaskClient, kind: str) -> list[str]:
    return [unescape(found) for found in re.findall(rf'(?:src|data-clip)="(/{kind}/[^"]*)"', client.get("/?q=a").text)]


def number_of(content: bytes) -> int:
    return int(read_number(np.asarray(Image.open(io.BytesIO(content)))))


def test_every_moment_has_a_picture_of_its_best_frame(client: FlaskClient, folder: Path) -> None:
    found = addresses(client, "picture")
    assert len(found) > 4
    assert all(address.startswith("/picture/") for address in found)
    shown = 0
    for address in found:
        response = client.get(address)
        assert response.status_code == 200
        assert "no-cache" in response.headers["Cache-Control"]
        at = int(address.split("/")[2]) / 10_000
        if unquote(address).endswith(("/v01", ODD)):
            assert response.mimetype == "image/jpeg"
            assert abs(number_of(response.data) - int(at * SECONDS * 10)) <= ("v01" in address)
            shown += 1
        else:
            assert response.mimetype == "image/svg+xml"
    assert shown > 2
    assert not [address for address in found if "none" in address]


def test_a_picture_is_made_once_and_again_for_a_changed_video(client: FlaskClient, folder: Path) -> None:
    address, kept = f"/picture/5000/{quote(ODD)}", folder.parent / "extracts"
    first = client.get(address)
    assert [path.suffix for path in kept.iterdir()] == [".jpg"]
    made = next(kept.iterdir())
    os.utime(made, (1, 1))
    assert client.get(address).data == first.data
    assert made.stat().st_mtime == 1
    assert client.get(address, headers={"If-None-Match": client.get(address).headers["ETag"]}).status_code == 304
    assert number_of(first.data) == 15
    write_video(folder / f"{ODD}.mp4", list(range(0, 6000, 200)))
    assert number_of(client.get(address).data) in (7, 8)
    client.get("/picture/2500/" + quote(ODD))
    assert len(list(kept.iterdir())) == 3


def test_only_videos_of_the_index_have_pictures_and_clips(client: FlaskClient, folder: Path) -> None:
    for name in ("../secret", "secret", str(folder.parent / "secret"), "none", "v01/../../secret", "%2e%2e/secret"):
        for start in ("/picture/5000/", "/clip/0/5000/"):
            for address in (start + name, start + quote(name, safe="")):
                assert client.get(address).status_code in (404, 308), address
    for address in ("/picture/x/v01", "/picture/-1/v01", "/picture/1.5/v01", "/clip/9/9/v01", "/clip/0/10001/v01"):
        assert client.get(address).status_code == 404
    assert client.get(f"/picture/{10**30}/v01").status_code == 200  # the last frame
    assert client.post("/picture/5000/v01").status_code == 405
    assert not [path for path in folder.iterdir() if path.suffix in (".jpg", ".part")]


def test_what_browsers_cannot_play_is_offered_as_a_clip(client: FlaskClient) -> None:
    text = client.get("/?q=a").text
    assert "the .avi file" in text
    assert '<img class="film" loading="lazy" src="/video/gif" alt="">' in text
    (clip, *_) = [address for address in addresses(client, "clip") if address.endswith("/v01")]
    response = client.get(clip)
    assert (response.status_code, response.mimetype) == (200, "video/mp4")
    assert b"avc1" in response.data
    assert client.get(clip, headers={"Range": "bytes=4-7"}).data == b"ftyp"
    assert client.get("/clip/0/5000/broken").status_code == 404


@pytest.mark.parametrize("suffix", MIME_TYPES)
def test_every_kind_of_video_file_has_its_type(suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"v{suffix.upper()}").write_bytes(b"x")
    client = make_app(SearcherSource(make_searcher({"v": ["a"]})), "127.0.0.1", 5, tmp_path).test_client()
    assert client.get("/video/v").mimetype == MIME_TYPES[suffix]


@pytest.mark.parametrize("missing", ["folder", "decoder"])
def test_no_pictures_without_videos_or_decoder(missing: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if missing == "decoder":
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    searcher = make_searcher({"v01": ["a"]}, {"v01": SECONDS})
    given = None if missing == "folder" else folder
    client = make_app(SearcherSource(searcher), "127.0.0.1", 5, given, folder.parent / "extracts").test_client()
    assert "<img" not in client.get("/?q=a").text
    assert client.get("/picture/5000/v01").status_code == 404
    assert client.get("/clip/0/5000/v01").status_code == 404


def test_many_requests_leave_threads_free(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two pictures are made at a time, four requests wait, and further ones are sent away."""
    release, busy, most = threading.Event(), [0], [0]

    def slow(*_: Any) -> None:
        busy[0] += 1
        most[0] = max(most[0], busy[0])
        release.wait(20)
        busy[0] -= 1

    monkeypatch.setattr(module, "write_still", slow)
    searcher = make_searcher({"v01": ["a"]}, {"v01": SECONDS})
    app = make_app(SearcherSource(searcher), "127.0.0.1", 5, folder, folder.parent / "extracts")
    found: list[int] = []
    threads = [
        threading.Thread(target=lambda at=at: found.append(app.test_client().get(f"/picture/{at}/v01").status_code))
        for at in range(10)
    ]
    for thread in threads:
        thread.start()
    while len(found) < 4:
        time.sleep(0.01)
    assert found == [503] * 4
    assert app.test_client().get("/picture/99/v01").headers["Retry-After"] == "1"
    release.set()
    for thread in threads:
        thread.join()
    assert sorted(found) == [200] * 6 + [503] * 4
    assert most == [2]


def test_the_folder_stays_small(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = folder.parent / "extracts"
    kept.mkdir()
    for name in ("old.jpg", "other.txt", ".a.jpg.0.part", ".b.jpg.0.part"):
        (kept / name).write_bytes(bytes(1000))
    for name in ("old.jpg", ".a.jpg.0.part"):
        os.utime(kept / name, (1, 1))
    monkeypatch.setattr(module, "_MAX_BYTES", {".jpg": 3000, ".mp4": 3000})
    monkeypatch.setattr(module, "write_still", lambda video, file, at, duration: file.write(bytes(900)))
    extracts = Extracts(kept)
    made = [extracts.picture("v01", folder / "v01.avi", at / 10, None) for at in range(3)]
    assert all(path and path.exists() for path in made)
    assert sorted(path.name for path in kept.iterdir() if path not in made) == [".b.jpg.0.part", "other.txt"]


def test_failures_are_remembered_but_not_those_of_the_disk(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    extracts, kept = Extracts(folder.parent / "extracts"), folder.parent / "extracts"
    for _ in range(3):
        assert extracts.picture("broken", folder / "broken.mkv", 0.5, None) is None
    assert len(caplog.records) == 1
    kept.rmdir() if kept.is_dir() else None
    kept.write_text("in the way")
    assert extracts.picture("v01", folder / "v01.avi", 0.5, None) is None
    kept.unlink()
    assert extracts.picture("v01", folder / "v01.avi", 0.5, None) is not None
    assert extracts.picture("gone", folder / "gone.mp4", 0.5, None) is None
