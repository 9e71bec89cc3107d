"""The picture of a search."""

import io
import json
from typing import Any
from xml.etree import ElementTree

import pytest

from method.runtime.errors import InputError
from method.serving.output import SCHEMA
from tests.helpers.paths import REPOSITORY
from utils.draw_search import LEFT, RIGHT, main


def picture(answer: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> ElementTree.Element:
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(answer)))
    main([])
    return ElementTree.fromstring(capsys.readouterr().out)


@pytest.mark.parametrize("seconds", [None, 40.0])
def test_moment_and_texts(
    seconds: float | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    moment = {"start": 0.25, "end": 0.5, "start_seconds": 10.0, "end_seconds": 20.0}
    hit = {"rank": 1, "video_id": "a<b", "score": 0.5, "duration": seconds, "moment": moment, "timeline": [0.1, 0.5]}
    answer = {"schema": SCHEMA, "query": {"text": "R&B"}, "corpus": {"videos": 3}, "results": [hit]}
    svg = picture(answer, monkeypatch, capsys)
    texts = [element.text for element in svg.iter() if element.tag.endswith("text")]
    assert texts == ["R&B", "1  a<b", "score 0.500", "10 to 20 s of 40 s" if seconds else "25% to 50% of the video"]
    (band,) = (element for element in svg.iter() if element.get("class") == "moment")
    assert float(band.attrib["x"]) == LEFT + (RIGHT - LEFT) / 4
    assert float(band.attrib["width"]) == pytest.approx((RIGHT - LEFT) / 4, abs=0.1)


@pytest.mark.parametrize("text", ["", "no JSON", "[]", '{"schema": "other"}'])
def test_what_is_no_search_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    with pytest.raises(InputError, match=r"expected the output of search.py --json"):
        main([])


@pytest.mark.parametrize("name", ["search", "model"])
def test_pictures_of_the_readme_say_what_they_show(name: str) -> None:
    svg = ElementTree.parse(REPOSITORY / f"docs/images/{name}.svg").getroot()
    assert svg.get("role") == "img"
    assert all(svg.findtext(f"{{http://www.w3.org/2000/svg}}{tag}") for tag in ("title", "desc"))
