"""Frames generated in chunks give the scores of all frames at once, and are kept only where they are read again."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from benchmarks import evaluation
from benchmarks.evaluation import Case


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(evaluation, "DEVICE", torch.device("cpu"))
    monkeypatch.setattr(evaluation, "CHUNK_VIDEOS", 3)
    monkeypatch.setattr(evaluation, "PUBLISHED_BLOCK", 4)
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("lengths", ["equal", "mixed"])
def test_ranks_equal_the_published_ones(lengths: str) -> None:
    case = Case(8, 10, 12, lengths, "off")
    case.check_equal(16)
    case.weight_DD = -case.weight_DD
    with pytest.raises(AssertionError):
        case.check_equal(16)


def test_frames_are_kept_only_for_programs_that_read_them_again() -> None:
    for amp, kept_for in (("off", {"published"}), ("bf16", {"published", "products"})):
        for name in ("ours", "products", "published"):
            case = Case(8, 10, 12, "mixed", amp)
            case.check_equal(16)
            case.programs(16)[name]()
            assert ("kept" in vars(case)) == (name in kept_for), (amp, name)


def test_scores_do_not_depend_on_chunks() -> None:
    case = Case(8, 10, 12, "mixed", "off")
    parts = [case.published([chunk], 10) for chunk in case.chunks()]
    assert [part.shape[1] for part in parts] == [3, 3, 2]
    torch.testing.assert_close(torch.cat(parts, 1), case.published(case.kept, 10))
    assert case.operations == 2 * 2 * sum(case.lengths) * 384 * 10
