"""Nothing is timed unless both programs agree, and memory is reported at intervals."""

from __future__ import annotations

import pytest
import torch

from benchmarks import encoding
from benchmarks.encoding import Case


@pytest.fixture(autouse=True)
def _on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "DEVICE", torch.device("cpu"))


@pytest.mark.parametrize("extent", ["padded", "valid"])
def test_different_embeddings_are_refused(extent: str) -> None:
    case = Case(3, 2, 9, "mixed", extent)
    case.check_equal()
    with torch.no_grad():
        case.naive.w("mapping_linear.0.weight").mul_(1.01)
    with pytest.raises(AssertionError):
        case.check_equal()


def test_memory_is_reported_at_intervals(capsys: pytest.CaptureFixture[str]) -> None:
    case = Case(5, 2, 9, "equal", "padded")
    case.report_memory("bf16")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" videos")[0].strip() for line in lines[:-1]] == ["2", "4", "5", "5"]
    assert all(" MiB beyond" in line for line in lines[:-1])
