"""The limits of recall, by hand."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from method.data.captions import Caption, normalized_text
from method.evaluation.bounds import best_branch, bounds, duplicates
from method.evaluation.metrics import RECALL_AT, retrieval_metrics


def captions_of(*texts: tuple[str, str]) -> list[Caption]:
    """Captions from pairs of video and text."""
    return [Caption(f"{video}#enc#{place}", video, text) for place, (video, text) in enumerate(texts)]


@pytest.mark.parametrize(("one", "other", "same"), [
    ("A cat.", "a cat", True),
    ("a  cat\t", " a\u00a0cat !", True),
    ("Straße", "STRASSE", True),
    ("caf\u00e9", "cafe\u0301", True),
    ("a cat", "a cats", False),
    ("a man, a plan", "a man a plan", False),
    ("the cat", "a cat", False),
])  # fmt: skip
def test_what_counts_as_the_same_text(one: str, other: str, same: bool) -> None:
    assert (normalized_text(one) == normalized_text(other)) is same


def test_a_text_of_k_videos_is_right_once_in_k() -> None:
    found = duplicates(captions_of(("a", "a cat"), ("b", "A cat."), ("c", "a cat"), ("c", "a dog"), ("d", "two dogs")))
    assert (found.captions, found.texts) == (3, 1)
    assert found.ceiling == {"r1": 60.0, "r5": 100.0, "r10": 100.0, "r100": 100.0, "sumr": 360.0}


def test_a_text_of_more_than_five_and_of_more_than_a_hundred_videos() -> None:
    found = duplicates(captions_of(*((str(video), "same") for video in range(120))))
    expected = {"r1": 100 / 120, "r5": 500 / 120, "r10": 1000 / 120, "r100": 10000 / 120}
    assert found.ceiling == pytest.approx({**expected, "sumr": sum(expected.values())})


def test_a_text_that_stands_more_often_for_one_video_favours_it() -> None:
    """No shared text of one video is lost, and the video with most captions of a text is worth the first place."""
    found = duplicates(captions_of(("a", "x"), ("a", "x"), ("b", "x"), ("a", "y"), ("a", "y")))
    assert (found.captions, found.texts) == (3, 1)
    assert found.ceiling["r1"] == 80.0


def test_no_ranking_by_words_beats_the_ceiling_and_the_best_reaches_it() -> None:
    captions = captions_of(("a", "x"), ("b", "x"), ("b", "x"), ("c", "x"), ("c", "y"), ("a", "y"), ("b", "z"))
    best = 0.0
    for orders in np.ndindex(6, 6, 6):  # of the three videos, for each of the three texts
        ranking = {text: list(permutations("abc"))[order] for text, order in zip("xyz", orders, strict=True)}
        best = max(best, sum(ranking[own.text][0] == own.video_id for own in captions) / len(captions))
    assert duplicates(captions).ceiling["r1"] == pytest.approx(100 * best)


def test_without_duplicates_everything_can_be_found() -> None:
    found = duplicates(captions_of(("a", "x"), ("a", "x"), ("b", "y")))
    assert (found.captions, found.texts, found.ceiling["sumr"]) == (0, 0, 400.0)


def test_the_best_branch_is_chosen_caption_by_caption() -> None:
    ranks = {
        "action": np.array([1, 6, 11, 101, 5]),
        "object": np.array([1, 5, 10, 100, 6]),
        "audio": np.array([2, 9, 99, 999, 1]),
        "fused": np.array([1, 1, 1, 1, 1]),  # no limit for it
    }
    chosen = best_branch(ranks)
    assert chosen == {"r1": 40.0, "r5": 60.0, "r10": 80.0, "r100": 100.0, "sumr": 280.0}
    for name in ("action", "object", "audio"):
        own = retrieval_metrics(ranks[name])
        assert all(chosen[f"r{k}"] >= own[f"r{k}"] for k in RECALL_AT)


def test_a_single_branch_leaves_no_choice() -> None:
    captions = captions_of(("a", "x"), ("b", "x"))
    ranks = {"action": np.array([1, 2]), "fused": np.array([1, 2])}
    assert best_branch(ranks) is None
    assert list(bounds(captions, ranks)) == ["duplicates"]
    assert list(bounds(captions, {**ranks, "object": np.array([2, 1])})) == ["best_branch", "duplicates"]
