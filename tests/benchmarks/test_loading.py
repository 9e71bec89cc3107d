"""Every way to load an epoch gives the same batches, or nothing is timed."""

import pytest

from benchmarks import loading


def test_ways_to_load_are_compared(capsys: pytest.CaptureFixture[str]) -> None:
    loading.main(["--share", "0.001", "--stored", "3", "--workers", "1", "--rounds", "1", "--step", "0.01"])
    lines = capsys.readouterr().out.splitlines()
    timed = [line.partition("median")[0].strip() for line in lines if " median " in line]
    assert timed == ["published", "first, building the cache", "files, no workers", "files, 1 workers",
        "cache, no workers", "cache, 1 workers", "in memory", "plain copy"]  # fmt: skip
    assert sum("waited for" in line for line in lines) == 3
