"""Preprocessing against the published numbers and a loop."""

import itertools

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from method.data.preprocessing import FloatRows, normalize_rows, preprocess_query, preprocess_stream, sample_frames
from tests.helpers.golden_case import draw
from tests.helpers.paths import GOLDEN


def naive_sample(rows: FloatRows, segments: int) -> FloatRows:
    n = len(rows)
    if n <= segments:
        return rows
    edges = [min(int(np.round(i / segments * n)), n - 1) for i in range(segments + 1)]
    sampled = [rows[a:b].mean(axis=0) if b > a else rows[a] for a, b in itertools.pairwise(edges)]
    return np.stack(sampled)


def test_golden_preprocessing() -> None:
    with np.load(GOLDEN / "preprocess.npz") as golden:
        names = list(golden)
        for name in names:
            n = int(name.split("/")[1])
            ours = preprocess_stream(draw(f"preprocess/{n}", (n, 4)), 128)
            np.testing.assert_allclose(ours, golden[name], atol=1e-6, err_msg=name)
    assert any(int(name.split("/")[1]) > 128 for name in names)


@given(st.integers(1, 700), st.integers(1, 130))
@settings(deadline=None, max_examples=200)
def test_sampling_equals_a_loop(n: int, segments: int) -> None:
    rows = np.random.default_rng(n).standard_normal((n, 3)).astype(np.float32)
    sampled = sample_frames(rows, segments)
    assert sampled.dtype == np.float32
    assert len(sampled) == min(n, segments)
    np.testing.assert_allclose(sampled, naive_sample(rows, segments), atol=2e-6)


def test_rows_are_divided_by_their_norm() -> None:
    rows = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-5, 0.0]])
    expected = torch.tensor([[3 / 5.00001, 4 / 5.00001], [0.0, 0.0], [0.5, 0.0]])
    torch.testing.assert_close(normalize_rows(rows), expected)


def test_queries_are_cut_and_not_averaged() -> None:
    rows = np.random.default_rng(0).standard_normal((9, 4)).astype(np.float32)
    ours = preprocess_query(rows, 5)
    torch.testing.assert_close(ours, normalize_rows(torch.from_numpy(rows))[:5])
