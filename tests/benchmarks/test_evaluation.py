"""What is made a piece at a time is what would be made at once, and is kept for nothing that does not read it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from benchmarks import evaluation
from benchmarks.evaluation import Case


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(evaluation, "DEVICE", torch.device("cpu"))
    monkeypatch.setattr(evaluation, "VIDEOS_AT_ONCE", 3)
    monkeypatch.setattr(evaluation, "PUBLISHED_BLOCK", 4)
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("lengths", ["equal", "mixed"])
def test_ranks_are_those_of_the_published_way(lengths: str) -> None:
    case = Case(8, 10, 12, lengths, "off")
    case.check_equal(16)
    case.weight_DD = -case.weight_DD
    with pytest.raises(AssertionError):
        case.check_equal(16)


def test_frames_are_kept_for_the_published_way_alone_unless_keys_are_rounded() -> None:
    for amp, kept_for in (("off", {"published"}), ("bf16", {"published", "products"})):
        for name in ("ours", "products", "best frames", "published"):
            case = Case(8, 10, 12, "mixed", amp)
            case.check_equal(16)
            case.programs(16)[name]()
            assert ("kept" in vars(case)) == (name in kept_for), (amp, name)


def test_all_pieces_at_once_score_as_one_by_one() -> None:
    case = Case(8, 10, 12, "mixed", "off")
    parts = [case.published([piece], 10) for piece in case.pieces()]
    assert [part.shape[1] for part in parts] == [3, 3, 2]
    torch.testing.assert_close(torch.cat(parts, 1), case.published(case.kept, 10))
    assert case.operations == 2 * 2 * sum(case.lengths) * 384 * 10
