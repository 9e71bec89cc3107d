"""The JSON API: every field, its limits and errors, and many requests at a time."""

from __future__ import annotations

import gc
import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from method import __version__
from method.runtime.errors import InputError
from method.serving.output import as_json
from method.serving.searcher import MAX_CHARACTERS, Searcher, _Query
from method.serving.source import SearcherSource
from method.serving.web.server import make_app
from tests.helpers.search_runs import MISSING_ENCODER, confidence, kitchen, make_searcher
from tests.helpers.small_models import SMALL

SECURITY = ("Content-Security-Policy", "X-Content-Type-Options", "Cross-Origin-Resource-Policy")
ADDRESSES = ("/api/search?q=a", "/api/videos", "/api/health", "/api/version")


def client_of(searcher: Searcher, results: int = 5, host: str = "127.0.0.1") -> FlaskClient:
    return make_app(SearcherSource(searcher), host, results, None).test_client()


@pytest.fixture(scope="module")
def searcher() -> Searcher:
    return make_searcher(kitchen(), durations={"v01": 75.0}, confidence=confidence([(-1.0, 0.2), (1.0, 0.9)], 0.5))


@pytest.fixture
def client(searcher: Searcher) -> FlaskClient:
    return client_of(searcher)


def read(response: TestResponse, status: int = 200) -> Any:
    assert response.status_code == status, response.get_data(as_text=True)
    assert response.mimetype == "application/json"
    assert response.headers["Cache-Control"] == "no-store"
    return json.loads(response.get_data(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def without_time(answer: dict[str, Any]) -> dict[str, Any]:
    return {**answer, "seconds": None}


@pytest.mark.parametrize(("question", "find"), [
    ({"q": "a person opens"}, lambda searcher: searcher.search("a person opens", 5)),
    ({"q": "v04#enc#1", "topk": "2"}, lambda searcher: searcher.search_caption("v04#enc#1", 2)),
    ({"q": "a", "topk": "3", "offset": "12", "moments": "3"}, lambda searcher: searcher.search("a", 3, 12, 3)),
    ({"q": "a", "offset": "14"}, lambda searcher: searcher.search("a", 5, 14)),
    ({"like": "v01@10-20"}, lambda searcher: searcher.search_like("v01@10-20", 5)),
    ({"like": "v02@10%", "offset": "3", "moments": "2"}, lambda searcher: searcher.search_like("v02@10%", 5, 3, 2)),
], ids=lambda value: str(sorted(value)) if isinstance(value, dict) else "")  # fmt: skip
def test_an_answer_is_that_of_the_command_line(
    client: FlaskClient, searcher: Searcher, question: dict[str, str], find: Callable[[Searcher], Any]
) -> None:
    found = read(client.get("/api/search", query_string=question))
    expected = json.loads(json.dumps(as_json(find(searcher), "test", 14)))
    assert list(found) == list(expected)
    assert without_time(found) == without_time(expected)


def test_the_fields_of_an_answer(client: FlaskClient) -> None:
    answer = read(client.get("/api/search?q=a+man&topk=4"))
    assert list(answer) == ["schema", "query", "corpus", "offset", "next_offset", "confidence", "confident", "note",
                            "seconds", "results"]  # fmt: skip
    assert (answer["schema"], answer["offset"], answer["next_offset"]) == ("a3prvr.search/2", 0, 4)
    score = answer["results"][0]["score"]
    assert answer["confidence"] == pytest.approx(0.55 + 0.35 * score)
    assert answer["confident"] is (answer["confidence"] >= 0.5)
    assert list(answer["query"]) == ["text", "caption_id", "video_id", "right_rank", "like"]
    again = read(client.get("/api/search?q=a+man&offset=4"))
    assert again["confidence"] == answer["confidence"]  # of the first result, on every page
    assert read(client.get("/api/search?like=v01@3"))["confidence"] is None


def test_pages_have_each_video_once(client: FlaskClient, searcher: Searcher) -> None:
    expected = [hit.video_id for hit in searcher.search("a door", 14).hits]
    for size in (1, 3, 14, 200):
        found, offset = [], 0
        while offset is not None:
            answer = read(client.get("/api/search", query_string={"q": "a door", "topk": size, "offset": offset}))
            assert [hit["rank"] for hit in answer["results"]] == [
                *range(offset + 1, offset + len(answer["results"]) + 1)
            ]
            found += [hit["video_id"] for hit in answer["results"]]
            offset = answer["next_offset"]
        assert found == expected


def test_the_list_of_videos_is_paged(client: FlaskClient, searcher: Searcher) -> None:
    found: list[dict[str, Any]] = []
    offset = 0
    while offset is not None:
        page = read(client.get("/api/videos", query_string={"count": 4, "offset": offset}))
        assert list(page) == ["schema", "corpus", "offset", "next_offset", "videos"]
        assert page["corpus"] == {"split": "test", "videos": 14}
        found += page["videos"]
        offset = page["next_offset"]
    assert found == [{"video_id": own, "duration": 75.0 if own == "v01" else None} for own in searcher.video_ids]
    assert read(client.get("/api/videos?offset=14"))["videos"] == []
    assert len(read(client.get("/api/videos"))["videos"]) == 14


def test_the_state_of_the_server(client: FlaskClient) -> None:
    corpus = {"split": "test", "videos": 14}
    read(client.get("/api/search?q=a"))
    expected = {"status": "ok", "corpus": corpus, "sentences": True, "confidence": True, "reload_error": None}
    assert read(client.get("/api/health")) == expected
    without = read(client_of(make_searcher(kitchen(), encoder=False)).get("/api/health"))
    assert without == {**expected, "sentences": False, "confidence": False}
    assert read(client.get("/api/version")) == {
        "version": __version__,
        "schemas": ["a3prvr.search/2", "a3prvr.videos/1"],
    }


@pytest.mark.parametrize(("address", "message"), [
    ("search", "expected one of the parameters q and like"),
    ("search?q=a&like=v01@3", "expected one of the parameters q and like"),
    ("search?q=", "an empty query, expected a sentence"),
    ("search?q=%00", "an empty query, expected a sentence"),
    (f"search?q={'x' * (MAX_CHARACTERS + 1)}", "a query of 501 characters, expected at most 500"),
    ("search?q=a&topk=0", "topk='0': expected a whole number from 1 to 200"),
    ("search?q=a&topk=201", "topk='201': expected a whole number from 1 to 200"),
    ("search?q=a&topk=-1", "topk='-1': expected"),
    ("search?q=a&topk=", "topk='': expected"),
    ("search?q=a&topk=1.5", "topk='1.5': expected"),
    ("search?q=a&topk=%D9%A3", "topk='٣': expected"),
    (f"search?q=a&topk={'9' * 5000}", "topk='999"),
    ("search?q=a&offset=-1", "offset='-1': expected a whole number from 0 to 1000000"),
    ("search?q=a&offset=1000001", "offset='1000001': expected a whole number from 0 to 1000000"),
    ("search?q=a&moments=0", "moments='0': expected a whole number from 1 to 20"),
    ("search?q=a&moments=21", "moments='21': expected"),
    ("search?q=a&top=3", "parameter 'top': expected like, moments, offset, q, topk"),
    ("search?q=a&q=b", "parameter q: given 2 times, expected once"),
    ("search?like=v01", "'v01': expected VIDEO@TIME"),
    ("search?like=v02@3", "the duration of this video is unknown"),
    ("search?like=v99@3%25", "no searched video has the id 'v99'"),
    (f"search?like={'x' * 1001}", "like of 1001 characters, expected at most 1000"),
    ("videos?count=0", "count='0': expected a whole number from 1 to 1000"),
    ("videos?count=1001", "count='1001': expected"),
    ("videos?offset=x", "offset='x': expected"),
    ("videos?q=a", "parameter 'q': expected count, offset"),
    ("health?q=a", "parameter 'q': expected none"),
    ("version?q=a", "parameter 'q': expected none"),
])  # fmt: skip
def test_mistakes_are_named(client: FlaskClient, address: str, message: str) -> None:
    found = read(client.get(f"/api/{address}"), 400)
    assert list(found) == ["error"]
    assert message in found["error"]
    assert len(found["error"]) < 300


def test_without_a_text_encoder() -> None:
    client = client_of(make_searcher(kitchen(), encoder=False))
    assert read(client.get("/api/search?q=a+man"), 400) == {"error": MISSING_ENCODER}
    assert read(client.get("/api/search?q=v01%23enc%230"))["query"]["caption_id"] == "v01#enc#0"


def test_other_addresses_and_methods_are_errors_in_json(client: FlaskClient) -> None:
    assert read(client.get("/api/nothing"), 404) == {"error": "Not Found"}
    for address in ADDRESSES:
        for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
            response = client.open(address, method=method)
            assert read(response, 405) == {"error": "Method Not Allowed"}
            assert "GET" in response.headers["Allow"]


def test_a_failure_of_the_program_is_an_error_in_json(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("private")

    searcher = make_searcher(kitchen())
    monkeypatch.setattr(searcher, "search", fail)
    assert read(client_of(searcher).get("/api/search?q=a"), 500) == {"error": "Internal Server Error"}


@pytest.mark.parametrize("bad", ["attacker.example", "127.0.0.1.attacker.example:8000", "1.2.3.4", "localhost.."])
def test_unknown_host_names_are_refused_on_the_loopback(client: FlaskClient, searcher: Searcher, bad: str) -> None:
    for address in ADDRESSES:
        assert read(client.get(address, headers={"Host": bad}), 400) == {"error": "unknown host name"}
        read(client.get(address, headers={"Host": "localhost:8000"}))
    read(client_of(searcher, host="0.0.0.0").get("/api/health", headers={"Host": "gpu-box:8000"}))


def test_security_headers(client: FlaskClient) -> None:
    for address in (*ADDRESSES, "/api/nothing", "/api/search"):
        headers = client.get(address).headers
        assert all(name in headers for name in SECURITY)
        assert "Access-Control-Allow-Origin" not in headers


def test_ids_that_are_not_text_are_escaped() -> None:
    client = client_of(make_searcher({"caf\udce9": ["a"], "ü<b>": ["b"]}))
    response = client.get("/api/videos")
    assert response.get_data().isascii()
    assert [own["video_id"] for own in read(response)["videos"]] == ["caf\udce9", "ü<b>"]
    read(client.get("/api/search?q=a"))


def test_more_results_than_the_limit_are_not_the_default(searcher: Searcher) -> None:
    read(client_of(searcher, results=10_000).get("/api/search?q=a"))


def test_answers_of_many_clients_are_their_own(searcher: Searcher) -> None:
    """Of many requests from several threads, each gets its answer, and nothing is kept of it."""
    app = make_app(SearcherSource(searcher), "127.0.0.1", 1, None)
    questions = [f"a person opens the {thing}" for thing in ("door", "fridge", "box", "cup", "bag")]
    expected = [searcher.search(own, 1).hits[0].scores["fused"] for own in questions]
    assert len(set(expected)) == len(questions)
    wrong: list[str] = []

    def ask(start: int, requests: int) -> None:
        client = app.test_client()
        for number in range(start, start + requests):
            place = number % len(questions)
            answer = client.get("/api/search", query_string={"q": questions[place]}).get_json()
            if answer["query"]["text"] != questions[place] or answer["results"][0]["score"] != expected[place]:
                wrong.append(questions[place])

    def ask_from_threads(requests: int) -> int:
        threads = [threading.Thread(target=ask, args=(start, requests)) for start in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        gc.collect()
        return len(gc.get_objects())

    before = ask_from_threads(20)
    assert ask_from_threads(320) - before < 600  # of 1,920 requests
    assert not wrong


def test_a_mistake_of_one_client_is_not_an_error_of_another(client: FlaskClient, searcher: Searcher) -> None:
    with pytest.raises(InputError):
        searcher.search("", 1)
    read(client.get("/api/search?q=a"))


def test_requests_for_a_deep_page_do_not_make_others_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    searcher = make_searcher(kitchen())
    engine, asked = searcher._engine, []
    search = engine.search

    def noted(vectors: Any, count: int, right: Any = None) -> Any:
        asked.append((len(right), count))
        return search(vectors, count, right)

    monkeypatch.setattr("method.serving.searcher._TOGETHER", 5)
    monkeypatch.setattr(engine, "search", noted)
    rows = torch.nn.functional.normalize(torch.randn(4, SMALL.hidden_size), dim=-1)
    queries = [
        _Query({"action": row, "object": -row}, count, None) for row, count in zip(rows, (3, 9, 4, 12), strict=True)
    ]
    found = searcher._search(queries)
    assert asked == [(2, 4), (1, 9), (1, 12)]
    for query, ranking in zip(queries, found, strict=True):
        (alone,) = searcher._search([query])
        assert ranking.best[: query.count] == alone.best
