"""The web page without a browser: its response to every request."""

from __future__ import annotations

import logging
import re
import signal
import socket
import time
import urllib.request
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from method.runtime.errors import InputError
from method.serving.output import as_json
from method.serving.searcher import MAX_CHARACTERS, Searcher
from method.serving.source import SearcherSource
from method.serving.videos import VideoFolder
from method.serving.web.server import make_app, serve
from method.serving.web.timeline import draw
from tests.helpers.search_runs import MISSING_ENCODER, confidence, kitchen, make_searcher, serving, write_video

SECRET = b"not for anybody"
HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>'


class Tags(HTMLParser):
    """Every tag of a page with its attributes, and the text between."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def named(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


@pytest.fixture(scope="module")
def searcher() -> Searcher:
    return make_searcher(kitchen(), durations={"v01": 75.0})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two videos, and secrets next to the folder and behind links in it."""
    (tmp_path / "secret.mp4").write_bytes(SECRET)
    folder = tmp_path / "videos"
    folder.mkdir()
    write_video(folder / "v01.webm")
    (folder / "v02.mp4").symlink_to(folder / "v01.webm")
    (folder / "v03.mp4").symlink_to(tmp_path / "secret.mp4")
    (folder / "v04.mp4").symlink_to(folder / "v04.mp4")
    (folder / "v05.mp4").mkdir()
    (folder / "not_searched.mp4").write_bytes(SECRET)
    return folder


def client_of(searcher: Searcher, folder: Path | None = None, host: str = "127.0.0.1") -> FlaskClient:
    app = make_app(SearcherSource(searcher), host, 5, folder)
    app.test_client_class = Reader
    return app.test_client()


class Reader(FlaskClient):
    """A client that reads every response completely."""

    def open(self, *args: Any, **options: Any) -> TestResponse:
        return super().open(*args, **{"buffered": True, **options})


@pytest.fixture
def client(searcher: Searcher, folder: Path) -> FlaskClient:
    return client_of(searcher, folder)


def page(response: TestResponse) -> Tags:
    return Tags(response.get_data(as_text=True))


def test_the_first_page_has_a_search_box_and_examples(client: FlaskClient) -> None:
    response = client.get("/")
    assert response.status_code == 200
    tags = page(response)
    assert [box["name"] for box in tags.named("input")] == ["q"]
    links = [link["href"] for link in tags.named("a") if str(link["href"]).startswith("/?id=")]
    assert len(links) >= 5
    for link in links:
        assert client.get(str(link)).status_code == 200


def test_a_query_and_its_permanent_link(client: FlaskClient, searcher: Searcher) -> None:
    response = client.get("/", query_string={"q": "a person opens the door"})
    assert response.status_code == 200
    tags = page(response)
    expected = searcher.search_sentence("a person opens the door", 5)
    ids = re.findall(r'<h2 id="r\d+-name">(.*?)</h2>', response.get_data(as_text=True))
    assert ids == [hit.video_id for hit in expected.hits]
    assert [box["value"] for box in tags.named("input")] == ["a person opens the door"]
    areas = [path["d"] for path in tags.named("path") if path["class"] == "area"]
    low, high = (extreme(score for hit in expected.hits for score in hit.timeline) for extreme in (min, max))
    assert areas == [draw(hit, (low, high)).area for hit in expected.hits]


def test_a_caption_and_its_permanent_link(client: FlaskClient, searcher: Searcher) -> None:
    response = client.get("/", query_string={"id": "v04#enc#1"})
    text = " ".join(page(response).text.split())
    rank = searcher.search_caption("v04#enc#1", 1).right_rank
    assert f"its own video has rank {rank}" in text
    assert searcher.captions["v04#enc#1"].text in text
    typed = client.get("/", query_string={"q": " v04#enc#1 "})
    assert (typed.status_code, typed.location) == (302, "/?id=v04%23enc%231")


def test_videos_without_captions(tmp_path: Path) -> None:
    write_video(tmp_path / "own.webm")
    client = make_app(SearcherSource(make_searcher({"own": [], "other": []})), "127.0.0.1", 10, tmp_path).test_client()
    assert "2 videos in the index" in client.get("/").text
    page = client.get("/?q=a door").text
    assert page.count("<article") == 2
    assert "caption" not in page.partition('<ol class="results">')[2].partition("</ol>")[0]
    assert client.get("/video/own").status_code == 200


def test_seconds_are_shown_if_known(client: FlaskClient) -> None:
    response = client.get("/", query_string={"id": "v01#enc#0", "top": "14"})
    spans = re.findall(r'<span class="span">(.*?)</span>', response.get_data(as_text=True))
    ids = re.findall(r'<h2 id="r\d+-name">(.*?)</h2>', response.get_data(as_text=True))
    for video_id, span in zip(ids, spans, strict=True):
        assert re.fullmatch(r"\d:\d\d–\d:\d\d" if video_id == "v01" else r"frame(s \d+-)?\s?\d+ of \d+", span)


def test_further_moments_are_marked_and_lead_to_their_place(folder: Path) -> None:
    searcher = make_searcher(kitchen(), durations={"v01": 75.0}, moments=3)
    response = client_of(searcher, folder).get("/", query_string={"id": "v01#enc#0", "top": "14"})
    text, tags = response.get_data(as_text=True), page(response)
    hits = searcher.search_caption("v01#enc#0", 14).hits
    further = [(hit, moment) for hit in hits for moment in hit.further]
    assert max(len(hit.further) for hit in hits) == 2
    bands = [rect for rect in tags.named("rect") if rect.get("class") == "further-band"]
    assert [float(str(band["x"])) for band in bands] == [1000 * moment.start for _, moment in further]
    links = [link for link in tags.named("a") if "data-start" in link]
    played = [(hit, moment) for hit, moment in further if hit.video_id in ("v01", "v02")]
    assert played
    assert [float(str(link["data-start"])) for link in links] == [moment.start for _, moment in played]
    targets = [f"#t={75 * moment.start:.2f}" if hit.video_id == "v01" else "" for hit, moment in played]
    assert [str(link["href"]) for link in links] == [
        f"/video/{hit.video_id}{target}" for (hit, _), target in zip(played, targets, strict=True)
    ]
    assert "further moments are shaded" in text
    assert "further" not in client_of(make_searcher(kitchen()), folder).get("/?id=v01%23enc%230").get_data(as_text=True)


def shown(response: TestResponse) -> list[str]:
    """The ids of the videos of a page."""
    return re.findall(r'<h2 id="r\d+-name">(.*?)</h2>', response.get_data(as_text=True))


def linked(response: TestResponse, rel: str) -> str | None:
    """The address of the page before or after."""
    links = [str(link["href"]) for link in page(response).named("a") if link.get("rel") == rel]
    assert len(links) <= 1
    return links[0] if links else None


@pytest.mark.parametrize("question", [("q", "a & b"), ("id", "v04#enc#1"), ("like", "v03@20-50%")])
@pytest.mark.parametrize("more", [{}, {"top": "4"}], ids=["default", "four"])
def test_pages_have_each_video_once(
    client: FlaskClient, searcher: Searcher, question: tuple[str, str], more: dict[str, str]
) -> None:
    name, value = question
    search = {"q": searcher.search, "id": searcher.search_caption, "like": searcher.search_like}[name]
    expected = [hit.video_id for hit in search(value, 14).hits]
    response = client.get("/", query_string={name: value, **more})
    assert linked(response, "prev") is None
    pages = [shown(response)]
    while (address := linked(response, "next")) is not None:
        before = response
        response = client.get(address)
        pages.append(shown(response))
        back = linked(response, "prev")
        assert back is not None
        assert shown(client.get(back)) == shown(before)
    assert [video_id for own in pages for video_id in own] == expected
    assert [len(own) for own in pages] == ([4, 4, 4, 2] if more else [5, 5, 4])


def test_pages_that_do_not_exist(client: FlaskClient) -> None:
    for top, expected in (("1", 1), ("0", 1), ("-3", 1), ("99999999999", 14), ("x", 5), ("", 5)):
        assert len(shown(client.get("/", query_string={"q": "a", "top": top}))) == expected
    for offset, expected in (("13", 1), ("-1", 5), ("x", 5), ("14", 0), ("9" * 30, 0)):
        response = client.get("/", query_string={"q": "a", "offset": offset})
        assert (response.status_code, len(shown(response))) == (200, expected)
    last = linked(client.get("/?q=a&offset=99"), "prev")
    assert last is not None
    assert len(shown(client.get(last))) == 5


def test_more_like_a_moment(client: FlaskClient, searcher: Searcher) -> None:
    response = client.get("/?q=a+man")
    first = searcher.search("a man", 1).hits[0]
    links = [str(link["href"]) for link in page(response).named("a") if link.get("class") == "like"]
    assert len(links) == 5
    found = client.get(links[0])
    moment = f"{100 * first.moment.start:.2f}-{100 * first.moment.end:.2f}%"
    expected = searcher.search_like(f"{first.video_id}@{moment}", 5)
    assert shown(found) == [hit.video_id for hit in expected.hits]
    assert [box["value"] for box in page(found).named("input")] == [""]
    wrong = client.get("/", query_string={"like": "v99@10%"})
    assert (wrong.status_code, "no searched video has the id" in page(wrong).text) == (400, True)


def test_the_confidence_is_shown() -> None:
    curve = ((-1.0, 0.25), (1.0, 0.25))
    for minimum, kind in ((0.0, "quiet"), (0.2, "quiet"), (0.3, "note")):
        response = client_of(make_searcher(kitchen(), confidence=confidence(curve, minimum))).get("/?q=a+man")
        (line,) = [own for own in page(response).named("p") if own.get("id") == "confidence"]
        assert line["class"] == kind
        assert "at such a score, 25% of first results were right." in page(response).text.lower()
        assert ("No confident match" in page(response).text) == (kind == "note")
    assert "first results" not in client_of(make_searcher(kitchen())).get("/?q=a+man").get_data(as_text=True)


@pytest.mark.parametrize(("question", "status", "message"), [
    ({"q": "x" * (MAX_CHARACTERS + 1)}, 400, "501 characters, expected at most 500"),
    ({"q": "\x00\x1b\x07"}, 400, "empty query"),
    ({"id": "v99#enc#0"}, 404, "There is no caption “v99#enc#0” in the dataset."),
    ({"id": ""}, 404, "There is no caption “”"),
])  # fmt: skip
def test_bad_requests_get_an_error_page(
    client: FlaskClient, question: dict[str, str], status: int, message: str
) -> None:
    response = client.get("/", query_string=question)
    assert response.status_code == status
    tags = page(response)
    assert message.lower() in tags.text.lower()
    assert tags.named("input")


@pytest.mark.parametrize("branches", [("audio",), ("action", "object", "audio")])
def test_a_result_shows_the_scores_of_all_branches(branches: tuple[str, ...]) -> None:
    searcher = make_searcher(kitchen(), branches=branches)
    tags = page(client_of(searcher).get("/?q=a+man"))
    answer = searcher.search("a man", 5)
    titles = [str(span["title"]) for span in tags.named("span") if span.get("class") == "score"]
    for title, hit in zip(titles, answer.hits, strict=True):
        names = (*branches, "fused") if len(branches) > 1 else branches
        assert title == ", ".join(f"{name} {hit.scores[name]:.4f}" for name in names)
        assert list(hit.best_frames) == list(branches)
    shown = f"{branches[-1]} {answer.hits[0].scores[branches[-1]]:.3f}"
    assert (shown in " ".join(tags.text.split())) == (len(branches) > 1)
    results = as_json(answer, "test", 14)["results"]
    assert all(list(hit["scores"]) == [*branches, "fused"] for hit in results)


def test_captions_can_be_searched_without_a_text_encoder() -> None:
    client = client_of(make_searcher(kitchen(), encoder=False))
    response = client.get("/", query_string={"q": "a man"})
    assert response.status_code == 400
    tags = page(response)
    assert MISSING_ENCODER.lower() in tags.text.lower()
    assert "Captions of the dataset still work as queries" in tags.text
    links = [str(link["href"]) for link in tags.named("a") if str(link["href"]).startswith("/?id=")]
    assert links
    assert client.get(links[0]).status_code == 200


def assert_no_markup_of(page_text: str) -> None:
    tags = Tags(page_text)
    assert [script.get("src") for script in tags.named("script")] == ["/static/page.js"]
    assert not tags.named("img")
    assert not [name for _, attributes in tags.tags for name in attributes if name.startswith("on")]
    assert HOSTILE not in page_text


@pytest.mark.parametrize("question", ["q", "id"])
def test_a_query_is_never_markup(client: FlaskClient, question: str) -> None:
    response = client.get("/", query_string={question: HOSTILE})
    text = response.get_data(as_text=True)
    assert_no_markup_of(text)
    assert [box["value"] for box in Tags(text).named("input")] == [HOSTILE]
    assert_no_markup_of(client.get(f"/{quote(HOSTILE)}").get_data(as_text=True))


def test_ids_and_captions_are_never_markup() -> None:
    hostile = {HOSTILE: [HOSTILE], "javascript:alert(1)": ["{{ 7 * 7 }}"], "v' onclick='alert(1)": ["b"]}
    client = client_of(make_searcher(hostile))
    questions: tuple[dict[str, str], ...] = ({}, {"q": "a"}, {"id": f"{HOSTILE}#enc#0"}, {"like": f"{HOSTILE}@30%"})
    for response in (client.get("/", query_string=question) for question in questions):
        assert response.status_code == 200
        text = response.get_data(as_text=True)
        assert_no_markup_of(text)
        assert "{{ 7 * 7 }}" in text
        for link in Tags(text).named("a"):
            assert str(link["href"]).startswith("/")


def test_security_headers(client: FlaskClient) -> None:
    addresses = ("/", "/?q=a", "/?id=no", "/nothing", "/video/v01", "/video/v99", "/static/page.js")
    for address in addresses:
        headers = client.get(address).headers
        policy = dict(part.strip().split(" ", 1) for part in headers["Content-Security-Policy"].split(";"))
        assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
        assert set(policy.values()) == {"'none'", "'self'"}
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"


def test_the_page_needs_no_network_and_no_inline_style_or_script(client: FlaskClient) -> None:
    text = client.get("/?id=v01%23enc%230").get_data(as_text=True)
    tags = Tags(text)
    for _, attributes in tags.tags:
        assert "style" not in attributes
        for name in ("src", "href"):
            assert (attributes.get(name) or "/").startswith("/")
            assert not (attributes.get(name) or "/").startswith("//")
    for name in ("page.css", "page.js", "icon.svg"):
        content = client.get(f"/static/{name}").get_data(as_text=True)
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|@import|url\(", content)
        for danger in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
            assert danger not in content


def test_videos_are_served_in_ranges(client: FlaskClient, folder: Path) -> None:
    content = (folder / "v01.webm").read_bytes()
    whole = client.get("/video/v01")
    assert (whole.status_code, whole.data, whole.mimetype) == (200, content, "video/webm")
    assert whole.headers["Accept-Ranges"] == "bytes"
    for range_header, start, end in (
        ("bytes=0-99", 0, 100),
        ("bytes=100-", 100, len(content)),
        ("bytes=-10", len(content) - 10, len(content)),
        (f"bytes=5-{10**9}", 5, len(content)),
        ("Bytes=5-9", 5, 10),
        (f"bytes=-{len(content)}", 0, len(content)),
        (f"bytes=-{len(content) + 1}", 0, len(content)),
        (f"bytes=-{10**15}", 0, len(content)),
    ):
        part = client.get("/video/v01", headers={"Range": range_header})
        assert part.status_code == 206
        assert part.data == content[start:end]
        assert part.headers["Content-Range"] == f"bytes {start}-{end - 1}/{len(content)}"
    for nothing in (f"bytes={len(content)}-", "bytes=-0", "Bytes= -00"):
        refused = client.get("/video/v01", headers={"Range": nothing})
        assert (refused.status_code, refused.headers["Content-Range"]) == (416, f"bytes */{len(content)}")
    head = client.head("/video/v01", headers={"Range": "bytes=0-4"})
    assert (head.status_code, head.data, head.content_length) == (200, b"", len(content))


@pytest.mark.parametrize("range_header", [
    "frames=0-4", "items=0-5", "bytes=x-", "bytes=9-4", "bytes=--5", "bytes=", "bytes=-", "bytes", "0-4", "",
    "bytes=0-4,9-12", "bytes=9-12,0-4", "bytes=0-4,-5", "bytes=0-4, x", f"bytes=0-{'9' * 5000}", "bytes=1.5-",
])  # fmt: skip
def test_ranges_that_are_ignored(client: FlaskClient, folder: Path, range_header: str) -> None:
    whole = client.get("/video/v01", headers={"Range": range_header})
    assert (whole.status_code, whole.data) == (200, (folder / "v01.webm").read_bytes())


def test_only_files_of_searched_videos_in_the_folder_are_served(client: FlaskClient, tmp_path: Path) -> None:
    assert client.get("/video/v02").status_code == 200  # a link that stays inside
    outside = str(tmp_path / "secret")
    names = ["v03", "v04", "v05", "v13", "not_searched", "v01.webm", "", "secret", "..", "../secret", "....//secret"]
    names += [outside, f"/{outside}", "v01/../../secret", "..\\secret", "v01\0", "%2e%2e/secret", "v01/../v01"]
    for name in names:
        for address in (f"/video/{name}", f"/video/{quote(name)}", f"/video/{quote(name, safe='')}"):
            response = client.get(address)
            assert response.status_code in (404, 308), address
            assert SECRET not in response.data
    for address in (
        "/static/../server.py",
        "/static/%2e%2e/server.py",
        "/static/..%2fserver.py",
        "/templates/page.html",
    ):
        assert client.get(address).status_code == 404


def test_ids_that_are_paths_find_nothing_outside_of_the_folder(folder: Path, tmp_path: Path) -> None:
    """A dataset is data: its ids may be anything."""
    ids = ["../secret", str(tmp_path / "secret"), "v01/../../secret", "x" * 5000, "a\0b", "\udcff", ".", ""]
    videos = VideoFolder(folder)
    for video_id in ids:
        assert videos.find(video_id) is None
    assert videos.find("v01") == (folder / "v01.webm", "video/webm")
    assert VideoFolder(None).find("v01") is None
    client = client_of(make_searcher({"../secret": ["a"], "b": ["c"]}), folder)
    assert not page(client.get("/?q=a")).named("video")
    assert client.get("/video/..%2fsecret").status_code == 404


def named(folder: Path, *names: str) -> VideoFolder:
    """A folder of empty files, each of which may be in a folder of its own."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return VideoFolder(folder)


@pytest.mark.parametrize(("file", "video_id"), [
    ("v01.MP4", "v01"),
    ("v01.Mkv", "v01"),
    ("part1/more/v01.mp4", "v01"),
    ("part1/v01.mp4", "part1/v01"),
    ("v01.mp4", "v01.mp4"),
    ("part1/v01.MOV", "v01.MOV"),
    ("a film, 2 of 3 [x] #1%20.mp4", "a film, 2 of 3 [x] #1%20"),
    ("v01.720p.mp4", "v01.720p"),
    ("-v01.webm", "-v01"),
    ("cafe\u0301.mp4", "caf\u00e9"),
    ("caf\u00e9.mp4", "cafe\u0301"),
    ("\udcff.mp4", "\udcff"),
])  # fmt: skip
def test_names_of_video_files(tmp_path: Path, file: str, video_id: str) -> None:
    videos = named(tmp_path, file)
    found = videos.find(video_id)
    assert found is not None
    assert found[0] == tmp_path / file
    assert videos.describe([video_id, "v99"]) == (1, f"1 of 2 videos have a file in {tmp_path}")
    client = client_of(make_searcher({video_id: ["a"]}), tmp_path)
    assert client.get(f"/video/{quote(video_id, errors='surrogateescape')}").status_code in (
        {200, 404} if "\udcff" in video_id else {200}  # an address is UTF-8
    )


def test_the_choice_among_several_files_is_fixed(tmp_path: Path) -> None:
    names = [
        "b/v01.mp4",
        "a/v01.mp4",
        "a/v01.webm",
        "v01.mkv",
        "v01.webm",
        "v01.mp4.mp4",
        ".hidden/v01.mp4",
        "._v01.mp4",
    ]
    taken = []
    videos = named(tmp_path, *names)
    while found := videos.find("v01"):
        taken.append(found[0].relative_to(tmp_path).as_posix())
        found[0].unlink()
    assert taken == ["v01.webm", "v01.mkv", "a/v01.mp4", "b/v01.mp4", "a/v01.webm"]


@pytest.mark.parametrize(("names", "message"), [
    (["v01.mp4", "sub/v02.MP4"], "2 of 14 videos have a file in {folder}"),
    (["film1.mp4"], "0 of 14 videos have a file in {folder}: it has files such as 'film1.mp4', expected names such as "
        "'v00.mp4'"),
    (["v01.mpg", "notes.txt"], "0 of 14 videos have a file in {folder}: it has no .mp4, .m4v, .webm, .ogv, .mov, .mkv, "
        ".avi, .gif file, expected names such as 'v00.mp4'"),
])  # fmt: skip
def test_the_number_of_videos_with_a_file_is_logged_at_the_start(
    tmp_path: Path, searcher: Searcher, names: list[str], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    named(tmp_path, *names)
    caplog.set_level(logging.INFO)
    client_of(searcher, tmp_path)
    level = logging.WARNING if message.startswith("0") else logging.INFO
    assert [(record.levelno, record.message) for record in caplog.records] == [(level, message.format(folder=tmp_path))]
    caplog.clear()
    client_of(searcher)
    assert not caplog.records


def test_a_file_removed_meanwhile(client: FlaskClient, folder: Path) -> None:
    (folder / "v01.webm").unlink()
    for video in ("v01", "v02"):
        assert client.get(f"/video/{video}").status_code == 404


def test_only_results_with_a_file_have_a_player(client: FlaskClient) -> None:
    tags = page(client.get("/?id=v01%23enc%230&top=14"))
    sources = sorted(str(video["src"]).split("#")[0] for video in tags.named("video"))
    assert sources == ["/video/v01", "/video/v02"]
    (timed,) = [str(video["src"]) for video in tags.named("video") if "v01" in str(video["src"])]
    assert re.fullmatch(r"/video/v01#t=\d+\.\d\d", timed)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_unknown_host_names_are_refused_on_the_loopback(searcher: Searcher, folder: Path, host: str) -> None:
    client = client_of(searcher, folder, host)
    for good in ("127.0.0.1:8000", "localhost:8000", "localhost", "LocalHost:8000", "LOCALHOST.", "[::1]:8000"):
        assert client.get("/", headers={"Host": good}).status_code == 200
    for bad in ("attacker.example", "127.0.0.1.attacker.example:8000", "localhost.example", "x@localhost", "1.2.3.4",
            "localhost..", "[::2]", "[::1", "", "127.0.0.1@attacker.example"):  # fmt: skip
        for address in ("/", "/?q=a", "/video/v01", "/static/page.js", "/nothing"):
            response = client.get(address, headers={"Host": bad})
            assert response.status_code == 400, (bad, address)
            assert b"<" not in response.data


def test_any_host_name_is_served_elsewhere(searcher: Searcher) -> None:
    client = client_of(searcher, host="0.0.0.0")
    assert client.get("/", headers={"Host": "gpu-box:8000"}).status_code == 200


def test_only_get_and_head_are_allowed(client: FlaskClient) -> None:
    for address in ("/", "/video/v01"):
        for method in ("POST", "PUT", "DELETE", "PATCH"):
            response = client.open(address, method=method)
            assert response.status_code == 405
            assert "GET" in response.headers["Allow"]


def test_a_port_in_use_is_named(searcher: Searcher) -> None:
    app = make_app(SearcherSource(searcher), "127.0.0.1", 5, None)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=rf"--host 127\.0\.0\.1 --port {port}: cannot listen there"):
            serve(app, "127.0.0.1", port)
    with pytest.raises(InputError, match=r"--host no\.such\.host\.example"):
        serve(app, "no.such.host.example", 0)


def test_stalled_players_block_nobody(folder: Path) -> None:
    """More of them than server threads, for each kind of large request; ranges stay exact meanwhile."""
    size, start = 200 << 20, np.random.default_rng(0).bytes(1 << 20)
    with (folder / "v06.mp4").open("wb") as file:
        file.write(start)
        file.truncate(size)
    request = "GET /video/v06 HTTP/1.1\r\nHost: localhost\r\n"
    many = ["Range: bytes=0-\r\n\r\n", "\r\n", "Range: bytes=-50000000\r\n\r\n", f"\r\n{request}\r\n"]
    idle = []
    with serving(folder, "x") as (address, _):
        try:
            for ending in many * 9:
                player = socket.socket()
                player.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                player.connect(("127.0.0.1", int(address.rsplit(":")[-1])))
                player.sendall(f"{request}{ending}".encode())
                idle.append(player)
            time.sleep(0.5)
            with urllib.request.urlopen(f"{address}/?q=a", timeout=20) as response:
                assert b"<article" in response.read()
            for range_header, first, end in (("10-", 10, size), ("1000-2000", 1000, 2001), ("-70", size - 70, size)):
                ranged = urllib.request.Request(f"{address}/video/v06", headers={"Range": f"bytes={range_header}"})
                with urllib.request.urlopen(ranged, timeout=20) as part:
                    assert part.headers["Content-Range"] == f"bytes {first}-{end - 1}/{size}"
                    assert int(part.headers["Content-Length"]) == end - first
                    assert part.read(len(start)) == (start[first:] + bytes(1 << 20))[: min(len(start), end - first)]
        finally:
            for player in idle:
                player.close()


def test_ctrl_c_ends_the_server(folder: Path) -> None:
    with serving(folder, "x") as (address, process):
        urllib.request.urlopen(address, timeout=30).close()
        process.send_signal(signal.SIGINT)
        _, message = process.communicate(timeout=30)
        assert process.returncode == 0
        assert "Traceback" not in message
