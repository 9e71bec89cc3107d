"""Confidence against known probabilities, and how an index stores it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from method.runtime.errors import InputError
from method.serving.calibration import Calibration, ScoreScale, confidences, fit, fit_curve, isotonic, reliability
from method.serving.calibration_file import as_json, load, open_confidence, save
from method.serving.index.manifest import Manifest, read_manifest, write_manifest

Array = npt.NDArray[Any]
SCALE = ScoreScale("a digest", {"action": 0.5, "object": 0.5}, "off")
# How often a first result is right at a score.
RATES: dict[str, Callable[[Array], Array]] = {
    "logistic": lambda score: 1 / (1 + np.exp(-12 * (score - 0.55))),
    "never above 0.6": lambda score: 0.6 / (1 + np.exp(-15 * (score - 0.5))),
    "rare": lambda score: 0.15 / (1 + np.exp(-10 * (score - 0.5))),
    "a step": lambda score: np.where(score > 0.55, 0.8, 0.1),
    "constant": lambda score: np.full(len(score), 0.3),
}


def draw(rate: Callable[[Array], Array], queries: int, seed: int = 0) -> tuple[Array, Array, list[str]]:
    """Scores, whether the first result is right, and videos of three queries each."""
    random = np.random.default_rng(seed)
    scores = np.clip(random.normal(0.55, 0.12, queries), 0, 1)
    return scores, random.random(queries) < rate(scores), [f"v{number // 3}" for number in range(queries)]


def fitted(rate: Callable[[Array], Array], queries: int, seed: int = 0) -> Calibration:
    scores, right, video_ids = draw(rate, queries, seed)
    return fit(scores, right, video_ids, SCALE, "demo", 40)


@pytest.mark.parametrize("name", RATES)
@pytest.mark.parametrize(("queries", "bound"), [(100, 0.12), (300, 0.08), (3000, 0.04)])
def test_the_confidence_is_near_the_true_rate(name: str, queries: int, bound: float) -> None:
    at = draw(RATES[name], 2000, seed=9)[0]
    errors = [
        np.abs(confidences(fitted(RATES[name], queries, seed).curve, at) - RATES[name](at)).mean() for seed in range(5)
    ]
    assert np.mean(errors) < bound


@pytest.mark.parametrize("name", RATES)
def test_the_reliability_is_that_of_queries_outside_the_fit(name: str) -> None:
    calibration = fitted(RATES[name], 3000)
    assert sum(own.queries for own in calibration.reliability) == calibration.queries == 3000
    for own in calibration.reliability:
        assert abs(own.confidence - own.right) < 0.05 + 3 * np.sqrt(0.25 / own.queries)
    assert calibration.error < 0.05
    rates = [own.confidence for own in calibration.reliability]
    assert rates == sorted(rates)


def test_queries_of_one_video_are_never_on_both_sides_of_the_fit() -> None:
    """Otherwise a video that is always found, whatever the score, would look calibrated."""
    random = np.random.default_rng(0)
    video = np.repeat(np.arange(60), 20)
    right = (random.random(60) < 0.5)[video]
    scores = video / 60 + random.normal(0, 1e-3, len(video))  # says which video it is, and nothing else
    calibration = fit(scores, right, [f"v{number}" for number in video], SCALE, "demo", 60)
    assert calibration.error > 0.1


def test_the_order_of_queries_does_not_matter() -> None:
    scores, right, video_ids = draw(RATES["logistic"], 200)
    order = np.random.default_rng(1).permutation(200)
    again = fit(scores[order], right[order], [video_ids[number] for number in order], SCALE, "demo", 40)
    first = fitted(RATES["logistic"], 200)
    np.testing.assert_allclose(np.array(again.curve), np.array(first.curve), rtol=1e-12)
    assert [own.queries for own in again.reliability] == [own.queries for own in first.reliability]


queries = st.lists(st.tuples(st.floats(-1, 1, width=16), st.booleans()), min_size=1, max_size=60)


@settings(deadline=None)
@given(queries)
def test_a_higher_score_never_has_a_lower_confidence(found: list[tuple[float, bool]]) -> None:
    scores, right = np.array([score for score, _ in found]), np.array([own for _, own in found])
    at = np.linspace(-1.5, 1.5, 301)
    values = confidences(fit_curve(scores, right), at)
    assert (np.diff(values) >= 0).all()
    assert (values >= 0).all()
    assert (values <= 1).all()
    if 0 < right.mean() < 1:
        assert 0 < values.min() <= right.mean() + 1e-9
        assert right.mean() - 1e-9 <= values.max() < 1


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.integers(1, 5)), min_size=1, max_size=8))
def test_isotonic_is_the_nearest_ascending_sequence(found: list[tuple[float, int]]) -> None:
    """Against the minimax formula: the highest of the lowest means (Barlow et al., 1972)."""
    values, weights = (np.array(own, np.float64) for own in zip(*found, strict=True))
    places = range(len(values))

    def mean(first: int, last: int) -> float:
        own = slice(first, last + 1)
        return float((values[own] * weights[own]).sum() / weights[own].sum())

    slow = [max(min(mean(a, b) for b in places[i:]) for a in places[: i + 1]) for i in places]
    np.testing.assert_allclose(isotonic(values, weights), slow, atol=1e-12)


@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize("queries", [2, 400])
def test_all_right_and_all_wrong(right: bool, queries: int) -> None:
    scores, _, video_ids = draw(RATES["logistic"], queries)
    video_ids[0] = "another"
    calibration = fit(scores, np.full(queries, right), video_ids, SCALE, "demo", 40)
    assert [calibration.confidence(score) for score in (-1.0, 0.5, 1.0)] == [float(right)] * 3
    assert [(own.confidence, own.right, own.queries) for own in calibration.reliability] == [(right, right, queries)]
    assert calibration.error == 0


def test_queries_of_a_single_video_are_refused() -> None:
    with pytest.raises(InputError, match="captions of 1 searched videos to fit the confidence on, expected at least 2"):
        fit(np.array([0.1, 0.2]), np.array([True, False]), ["v", "v"], SCALE, "demo", 40)


def test_bins_hold_every_query() -> None:
    bins = reliability(np.array([0.0, 0.05, 0.1, 0.999, 1.0]), np.array([False, True, True, True, False]))
    assert [(own.right, own.queries) for own in bins] == [(0.5, 2), (1.0, 1), (0.5, 2)]
    assert bins[0].confidence == pytest.approx(0.025)


def test_a_calibration_is_stored_with_the_index(tmp_path: Path) -> None:
    calibration = fitted(RATES["logistic"], 300)
    with pytest.raises(InputError, match="no index there"):
        save(tmp_path, "test", calibration)
    write_manifest(tmp_path, Manifest(3, {"checkpoint": "a digest"}))
    save(tmp_path, "test", calibration)
    save(tmp_path, "all", replace(calibration, videos=50))
    save(tmp_path, "test", replace(calibration, videos=60))
    manifest = read_manifest(tmp_path)
    assert manifest is not None
    assert manifest.generation == 6
    assert load(manifest.calibration, "test") == replace(calibration, videos=60)
    assert load(manifest.calibration, "all") == replace(calibration, videos=50)
    assert load(manifest.calibration, "train") is load(None, "test") is None


@pytest.mark.parametrize("damage", [
    lambda value: {**value, "version": 0}, lambda value: {**value, "curve": []}, lambda value: [],
    lambda value: {**value, "curve": [[0.1, 0.5], [0.2, 0.4]]}, lambda value: {**value, "curve": [[0.1, 1.5]]},
    lambda value: {**value, "curve": [["x", 0.5]]}, lambda value: {**value, "curve": [[0.2, 0.1], [0.1, 0.4]]},
    lambda value: {name: own for name, own in value.items() if name != "scale"},
    lambda value: {**value, "reliability": [{"right": 0}]}, lambda value: {**value, "scale": {}},
])  # fmt: skip
def test_a_damaged_calibration_is_named_and_costs_the_confidence_alone(
    damage: Callable[[Any], Any], caplog: pytest.LogCaptureFixture
) -> None:
    stored = {"test": damage(json.loads(json.dumps(as_json(fitted(RATES["logistic"], 30)))))}
    with pytest.raises(InputError, match=r"split test: not a calibration .*utils/index\.py calibrate"):
        load(stored, "test")
    assert open_confidence(stored, ["test"], SCALE, "demo", 40, 0.0).calibration is None
    assert "no confidence" in caplog.text
    with pytest.raises(InputError, match=r"--min_confidence 0\.5: .*not a calibration"):
        open_confidence(stored, ["test"], SCALE, "demo", 40, 0.5)


def test_which_calibration_is_used() -> None:
    splits, calibration = ["all", "test"], fitted(RATES["logistic"], 300)
    with pytest.raises(InputError, match=r"--min_confidence 0\.5: this search has no calibration; run python utils/"):
        open_confidence(None, splits, SCALE, "demo", 40, 0.5)
    stored = {"test": as_json(calibration)}
    assert open_confidence(stored, splits, SCALE, "demo", 40, 0.5).calibration == calibration
    for scale in (
        replace(SCALE, checkpoint="another"),
        replace(SCALE, weights={"action": 1.0}),
        replace(SCALE, precision="bf16"),
    ):
        assert open_confidence(stored, splits, scale, "demo", 40, 0.0).of(0.5) == (None, None)
        with pytest.raises(InputError, match="the calibration is of another checkpoint"):
            open_confidence(stored, splits, scale, "demo", 40, 0.5)
    stored["all"] = as_json(replace(calibration, videos=50))
    found = open_confidence(stored, splits, SCALE, "demo", 50, 0.5).calibration
    assert found is not None
    assert found.videos == 50


def test_what_is_said_of_a_score() -> None:
    calibration = fitted(RATES["logistic"], 3000)
    stored = {"test": as_json(calibration)}
    judge = open_confidence(stored, ["test"], SCALE, "demo", 40, 0.5)
    assert judge.note is None
    assert judge.of(0.3)[1] is False
    assert judge.of(0.8)[1] is True
    assert judge.of(0.8)[0] == calibration.confidence(0.8)
    assert open_confidence(stored, ["test"], SCALE, "demo", 40, 0.0).of(0.8)[1] is None
    larger, smaller, others = (open_confidence(stored, ["test"], SCALE, *own, 0.0).note for own in (
        ("demo", 41), ("demo", 39), ("mine", 40)))  # fmt: skip
    said = "the confidence is that of a search in 40 videos of demo"
    assert larger == f"{said}; first results are wrong more often than it says"
    assert smaller == others == said
