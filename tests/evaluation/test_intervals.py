"""Intervals and tests of recalls: against loops, and by simulation against what they claim."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from method.evaluation import intervals
from method.evaluation.intervals import paired_differences, recall_intervals
from method.evaluation.metrics import RECALLS, retrieval_metrics

SMALL = 40  # resamples of the loops


def some_ranks(videos: int = 9, seed: int = 3) -> tuple[dict[str, Any], list[str]]:
    """Ranks under two scores of 1 to 4 captions a video, not in the order of the videos."""
    random = np.random.default_rng(seed)
    owners = [f"v{video}" for video in range(videos) for _ in range(1 + video % 4)]
    random.shuffle(owners)
    return {name: random.integers(1, 150, len(owners)) for name in ("action", "fused")}, owners


def recalls(ranks: Any) -> list[float]:
    metrics = retrieval_metrics(np.array(ranks))
    return [metrics[key] for key in RECALLS]


def drawn(owners: list[str], resamples: int, seed: int) -> list[list[int]]:
    """Places of the captions in each resample; the numbers are those of one generator, whatever the chunks."""
    names = list(dict.fromkeys(owners))
    draws = np.random.default_rng(seed).integers(0, len(names), (resamples, len(names)))
    return [
        [place for video in row for place, owner in enumerate(owners) if owner == names[video]]
        for row in draws.tolist()
    ]


@pytest.mark.parametrize("chunk", [2**20, 9, 30])
def test_intervals_equal_a_loop_over_resamples(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "_CHUNK", chunk)
    ranks, owners = some_ranks()
    found = recall_intervals(ranks, owners, resamples=SMALL, seed=5)
    assert found is not None
    for name, own in ranks.items():
        values = np.array([recalls(own[places]) for places in drawn(owners, SMALL, 5)])
        low, high = np.quantile(values, [0.025, 0.975], axis=0)
        assert list(found[name]) == list(RECALLS)
        np.testing.assert_allclose(np.array(list(found[name].values())), np.stack([low, high], 1), rtol=1e-12)


def test_paired_intervals_equal_a_loop_over_resamples() -> None:
    ranks, owners = some_ranks()
    found = paired_differences(ranks["action"], ranks["fused"], owners, resamples=SMALL, seed=5)
    assert found is not None
    first, second = ranks["action"], ranks["fused"]
    values = [np.subtract(recalls(second[own]), recalls(first[own])) for own in drawn(owners, SMALL, 5)]
    low, high = np.quantile(np.array(values), [0.025, 0.975], axis=0)
    np.testing.assert_allclose([own.interval for own in found.values()], np.stack([low, high], 1), rtol=0, atol=1e-9)
    np.testing.assert_allclose([own.value for own in found.values()], np.subtract(recalls(second), recalls(first)))


def test_p_values_are_those_of_all_exchanges() -> None:
    """Of six videos all 64 exchanges can be tried."""
    ranks, owners = some_ranks(6, seed=1)
    first, second = ranks["action"], ranks["fused"]
    names = list(dict.fromkeys(owners))
    observed = np.abs(np.subtract(recalls(second), recalls(first)))
    larger = []
    for bits in range(2 ** len(names)):
        swap = np.array([bool(bits >> names.index(owner) & 1) for owner in owners])
        exchanged = np.subtract(recalls(np.where(swap, first, second)), recalls(np.where(swap, second, first)))
        larger.append(np.abs(exchanged) >= observed - 1e-9)
    found = paired_differences(first, second, owners, resamples=20_000)
    assert found is not None
    np.testing.assert_allclose([own.p for own in found.values()], np.mean(larger, 0), atol=0.015)
    assert 0 < min(own.p for own in found.values()) < 0.9


def simulated(random: np.random.Generator, videos: int, mean: float) -> tuple[Any, list[str]]:
    """Ranks 1 or 1,000: every video has a success rate of its own, so that its captions go together."""
    rates = random.beta(0.5, 0.5 * (1 - mean) / mean, videos)
    counts = random.integers(1, 8, videos)
    owners = np.repeat(np.arange(videos), counts)
    return np.where(random.random(len(owners)) < rates[owners], 1, 1000), [str(owner) for owner in owners]


def test_intervals_cover_the_true_recall_as_often_as_they_say() -> None:
    random, truth, repeats = np.random.default_rng(0), 0.3, 400
    covered, naive = 0, 0
    for seed in range(repeats):
        ranks, owners = simulated(random, 80, truth)
        found = recall_intervals({"fused": ranks}, owners, resamples=400, seed=seed)
        assert found is not None
        low, high = found["fused"]["r1"]
        covered += low <= 100 * truth <= high
        share = (ranks == 1).mean()
        naive += abs(share - truth) <= 1.96 * np.sqrt(share * (1 - share) / len(ranks))
    assert 0.91 <= covered / repeats <= 0.97
    assert naive / repeats < 0.85  # captions taken as independent, which is what clusters are for


def test_a_test_rejects_equal_rankings_as_rarely_as_it_says() -> None:
    random, repeats = np.random.default_rng(0), 400
    rejected, found_out = 0, 0
    for seed in range(repeats):
        ranks, owners = simulated(random, 40, 0.4)
        other, _ = simulated(random, 40, 0.4)
        other = np.resize(other, len(ranks))
        found = paired_differences(ranks, other, owners, resamples=199, seed=seed)
        better = paired_differences(ranks, np.where(random.random(len(ranks)) < 0.3, 1, ranks), owners, resamples=199)
        assert found is not None
        assert better is not None
        rejected += found["r1"].p <= 0.05
        found_out += better["r1"].p <= 0.05
    assert 0.02 <= rejected / repeats <= 0.08
    assert found_out / repeats > 0.95


def test_equal_rankings_and_certain_ones() -> None:
    ranks, owners = some_ranks()
    same = paired_differences(ranks["fused"], ranks["fused"], owners)
    assert same is not None
    assert {(own.value, own.interval, own.p) for own in same.values()} == {(0.0, (0.0, 0.0), 1.0)}
    certain = recall_intervals({"fused": np.ones(3, np.int64)}, ["a", "b", "b"])
    assert certain == {"fused": {**dict.fromkeys(("r1", "r5", "r10", "r100"), (100, 100)), "sumr": (400, 400)}}
    assert recall_intervals(ranks, ["one video"] * len(owners)) is None
    assert paired_differences(ranks["action"], ranks["fused"], ["one video"] * len(owners)) is None


def test_intervals_are_reproducible_and_full_size_takes_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks, owners = some_ranks(50)
    assert recall_intervals(ranks, owners) == recall_intervals(ranks, owners)
    assert recall_intervals(ranks, owners) != recall_intervals(ranks, owners, seed=1)
    sizes: list[int] = []
    real = np.bincount

    def bincount(values: Any, **named: Any) -> Any:
        sizes.append(len(values))
        return real(values, **named)

    monkeypatch.setattr(np, "bincount", bincount)
    videos = [str(video) for video in range(4430)]
    recall_intervals({"fused": np.random.default_rng(0).integers(1, 4430, 4430)}, videos, resamples=600)
    assert max(sizes) <= 2**20
