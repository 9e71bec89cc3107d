"""Both ways encode the same, or nothing is timed; and the memory is told for every part of the way."""

from __future__ import annotations

import pytest
import torch

from benchmarks import encoding
from benchmarks.encoding import Case


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "DEVICE", torch.device("cpu"))


@pytest.mark.parametrize("extent", ["padded", "valid"])
def test_keys_that_differ_are_refused(extent: str) -> None:
    case = Case(3, 2, 9, "mixed", extent)
    case.check_equal()
    with torch.no_grad():
        case.twin.w("mapping_linear.0.weight").mul_(1.01)
    with pytest.raises(AssertionError):
        case.check_equal()


def test_memory_is_said_on_the_way(capsys: pytest.CaptureFixture[str]) -> None:
    case = Case(5, 2, 9, "equal", "padded")
    case.report_memory("bf16")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" videos")[0].strip() for line in lines[:-1]] == ["2", "4", "5", "5"]
    assert all(" MiB beside" in line for line in lines[:-1])
