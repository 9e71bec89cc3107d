"""Moments as queries."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from method.runtime.errors import InputError
from method.serving.like import Like, like_vectors, parse
from method.serving.output import as_json
from tests.helpers.search_runs import kitchen, make_searcher


@pytest.mark.parametrize(("text", "expected"), [
    ("v01@3", Like("v01", 0.5, 0.5)),
    ("v01@0", Like("v01", 0.0, 0.0)),
    ("v01@1.5-3.0", Like("v01", 0.25, 0.5)),
    ("v01@3-99", Like("v01", 0.5, 1.0)),  # seconds are shown rounded
    ("v01@25%", Like("v01", 0.25, 0.25)),
    ("v01@25%-50%", Like("v01", 0.25, 0.5)),
    ("v01@25-50%", Like("v01", 0.25, 0.5)),
    ("a b@c@25-50%", Like("a b@c", 0.25, 0.5)),
    ("a\nb@100%", Like("a\nb", 1.0, 1.0)),
])  # fmt: skip
def test_moments_are_read(text: str, expected: Like) -> None:
    assert parse(text, {"v01": 6.0}) == expected


@pytest.mark.parametrize(("text", "message"), [
    ("v01", "'v01': expected VIDEO@TIME or VIDEO@START-END"),
    ("", "'': expected VIDEO@TIME"),
    ("@3", "'@3': expected VIDEO@TIME"),
    ("v01@", "expected VIDEO@TIME"),
    ("v01@-3", "expected VIDEO@TIME"),
    ("v01@1e5", "expected VIDEO@TIME"),
    ("v01@nan", "expected VIDEO@TIME"),
    ("v01@٣", "expected VIDEO@TIME"),
    ("v01@3-", "expected VIDEO@TIME"),
    (f"v01@{'9' * 400}", "expected VIDEO@TIME"),
    ("v01@4-3", "expected 0 <= start <= end in a video of 6 seconds"),
    ("v01@7", "expected 0 <= start <= end in a video of 6 seconds"),
    ("v01@101%", "expected 0 <= start <= end in a video of 100%"),
    ("v02@3", "'v02@3': the duration of this video is unknown; give percents, such as v02@30%"),
])  # fmt: skip
def test_mistakes_are_named(text: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        parse(text, {"v01": 6.0})


@settings(deadline=None)
@given(st.text(min_size=1), st.integers(0, 10_000), st.integers(0, 10_000))
def test_a_moment_is_read_as_it_is_written(video_id: str, first: int, last: int) -> None:
    like = Like(video_id, min(first, last) / 10_000, max(first, last) / 10_000)
    again = parse(str(like), {})
    assert again.video_id == video_id
    assert (again.start, again.end) == pytest.approx((like.start, like.end), abs=1e-9)


@pytest.mark.parametrize("frames", [1, 2, 5, 12])
def test_the_vector_is_the_mean_of_the_frames_of_the_moment(frames: int) -> None:
    keys = torch.nn.functional.normalize(torch.randn(frames, 5, generator=torch.Generator().manual_seed(1)), dim=1)
    places = [0.0, 0.03, 0.31, 0.333, 0.64, 0.97, 1.0]
    for start, end in ((start, end) for start in places for end in places if start <= end):
        own = [i for i in range(frames) if start <= (i + 0.5) / frames <= end]
        expected = keys[own or [min(int((start + end) / 2 * frames), frames - 1)]].mean(0)
        found = like_vectors({"action": keys}, Like("v", start, end), "off")["action"]
        torch.testing.assert_close(found, expected / expected.norm(), atol=1e-5, rtol=0)


def test_half_precision_is_that_of_queries() -> None:
    found = like_vectors({"action": torch.randn(3, 7).bfloat16()}, Like("v", 0, 1), "bf16")["action"]
    assert found.dtype == torch.float32
    assert torch.equal(found, found.bfloat16().float())


def test_every_frame_finds_its_own_video_first() -> None:
    searcher = make_searcher(kitchen(), durations={"v01": 75.0})
    for video_id in searcher.video_ids:
        for place in (0, 35, 100):
            answer = searcher.search_like(f"{video_id}@{place}%", 3)
            best = answer.hits[0]
            assert best.video_id == video_id
            assert best.scores["action"] == pytest.approx(1, abs=1e-5)
            assert best.scores["object"] == pytest.approx(1, abs=1e-5)
            for centre in best.best_frames.values():
                assert abs(centre - place / 100) < 1 / 6
            assert answer.hits[1].scores["fused"] < 0.999
    assert searcher.search_like("v01@37.5", 1).hits == searcher.search_like("v01@50%", 1).hits


def test_the_answer_says_which_moment_it_is_like() -> None:
    searcher = make_searcher(kitchen(), encoder=False)
    answer = searcher.search_like("v03@25-50%", 2)
    query = as_json(answer, "test", 14)["query"]
    assert query == {
        "text": "moments like v03@25-50%",
        "caption_id": None,
        "video_id": None,
        "right_rank": None,
        "like": {"video_id": "v03", "start": 0.25, "end": 0.5},
    }
    assert answer.confidence is answer.confident is None


def test_an_unknown_video_is_named() -> None:
    with pytest.raises(InputError, match=r"'v99@3%': no searched video has the id 'v99'"):
        make_searcher(kitchen()).search_like("v99@3%", 1)
