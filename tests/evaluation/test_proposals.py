"""Several moments of a timeline, against a loop."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import groupby

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from method.evaluation.moments import FLAT, Moment, best_moment, iou
from method.evaluation.proposals import best_moments, propose


def naive_moments(timeline: Sequence[float]) -> list[Moment]:
    """The definition: peaks from the highest down, the span of each at half its height, what overlaps dropped."""
    length, lowest = len(timeline), min(timeline)
    if max(timeline) - lowest <= FLAT:
        return [best_moment(timeline)]
    by_value = groupby(enumerate(timeline), key=lambda pair: pair[1])
    runs = [(value, [place for place, _ in run]) for value, run in by_value]
    walled = [-np.inf, *(value for value, _ in runs), -np.inf]
    peaks = [
        (value, places[0])
        for index, (value, places) in enumerate(runs)
        if value > walled[index] and value > walled[index + 2] and value - lowest > FLAT
    ]
    kept: list[tuple[int, int, int]] = []
    for value, peak in sorted(peaks, key=lambda found: (-found[0], found[1])):
        first, end = peak, peak + 1
        while first > 0 and timeline[first - 1] >= (lowest + value) / 2:
            first -= 1
        while end < length and timeline[end] >= (lowest + value) / 2:
            end += 1
        both = [max(0, min(end, own_end) - max(first, own_first)) for own_first, own_end, _ in kept]
        unions = [end - first + own[1] - own[0] - shared for own, shared in zip(kept, both, strict=True)]
        if not any(Fraction(shared, union) > Fraction(1, 2) for shared, union in zip(both, unions, strict=True)):
            kept.append((first, end, peak))
    return [Moment(first / length, end / length, (peak + 0.5) / length, timeline[peak]) for first, end, peak in kept]


@given(st.lists(st.lists(st.integers(-6, 6), min_size=9, max_size=9), min_size=1, max_size=6), st.integers(1, 9))
@settings(deadline=None, max_examples=150)
def test_moments_equal_a_loop_with_many_ties(rows: list[list[int]], length: int) -> None:
    timelines = [[float(value) for value in row[:length]] for row in rows]
    found = propose(np.array(timelines))
    assert found.timeline.tolist() == sorted(found.timeline.tolist())
    for index, timeline in enumerate(timelines):
        expected = naive_moments(timeline)
        assert best_moments(timeline, len(timeline)) == expected
        own = found.timeline == index
        assert (found.first[own] / length).tolist() == [moment.start for moment in expected]
        assert (found.end[own] / length).tolist() == [moment.end for moment in expected]
        assert found.score[own].tolist() == [moment.score for moment in expected]


@given(st.integers(1, 130), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=40)
def test_the_first_is_the_best_moment_and_none_overlaps_another(length: int, seed: int) -> None:
    timeline = np.random.default_rng(seed).standard_normal(length).astype(np.float32)
    moments = best_moments(torch.from_numpy(timeline), length)
    assert moments[0] == best_moment(timeline)
    assert moments == naive_moments(timeline.astype(np.float64).tolist())
    assert [moment.score for moment in moments] == sorted((moment.score for moment in moments), reverse=True)
    spans = [(moment.start, moment.end) for moment in moments]
    assert all(iou(a, b) <= 0.5 + 1e-9 for place, a in enumerate(spans) for b in spans[:place])
    for most in (1, 2, 5):
        assert best_moments(torch.from_numpy(timeline), most) == moments[:most]


@pytest.mark.parametrize(("timeline", "expected"), [
    ([0.3], [(0, 1)]),
    ([0.3] * 4, [(0, 4)]),  # flat: the whole video, once
    ([0, 4, 0, 3, 0], [(1, 2), (3, 4)]),  # two places
    ([0, 4, 3.5, 3.9, 0], [(1, 4)]),  # one place with two peaks
    ([0, 4, 1, 2, 0], [(1, 2), (1, 4)]),  # at half the height of the lower peak the span covers both: a wider moment
    ([0, 4, 1, 2], [(1, 2), (1, 4)]),
    ([4, 4, 0, 4], [(0, 2), (3, 4)]),  # equals in order of time
    ([0, 2, 2, 4, 0], [(1, 4)]),  # a step on the way up is no peak
])  # fmt: skip
def test_moments_of_handmade_timelines(timeline: list[float], expected: list[tuple[int, int]]) -> None:
    length = len(timeline)
    spans = [(round(moment.start * length), round(moment.end * length)) for moment in best_moments(timeline, 9)]
    assert spans == expected


def test_what_scores_less_than_wanted_may_be_left_out() -> None:
    timelines = np.random.default_rng(4).standard_normal((20, 60))
    least = np.linspace(-1, 2.5, 20, dtype=np.float64)
    every, some = propose(timelines), propose(timelines, least_Q=least)
    wanted = every.score >= least[every.timeline]
    assert 0 < wanted.sum() < len(wanted)
    for name in ("timeline", "first", "end", "peak", "score"):
        np.testing.assert_array_equal(getattr(some, name), getattr(every, name)[wanted])


def test_overlaps_are_those_of_spans() -> None:
    found = propose(np.random.default_rng(5).standard_normal((6, 40)))
    random = np.sort(np.random.default_rng(6).random((len(found.first), 2)))
    expected = [iou((f / 40, e / 40), (a, b)) for f, e, (a, b) in zip(found.first, found.end, random, strict=True)]
    assert found.overlaps(random).tolist() == expected
