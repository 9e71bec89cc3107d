"""PyTorch's threads are told how to wait before there are any, whoever is started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.paths import REPOSITORY

SCRIPTS = [
    path
    for folder in ("method", "utils", "benchmarks")
    for path in sorted((REPOSITORY / folder).glob("*.py"))
    if "sys.path[0] =" in path.read_text(encoding="utf-8")
]


def spins_shown(script: Path, **environment: str) -> str:
    """What OpenMP says that it has been told, once for each library that brings it."""
    kept = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    run = [sys.executable, str(script), "--help"]
    environment = {**kept, **environment, "OMP_DISPLAY_ENV": "verbose"}
    done = subprocess.run(run, env=environment, capture_output=True, text=True, check=True)
    return "".join(line for line in done.stderr.splitlines(keepends=True) if "GOMP_SPINCOUNT" in line)


@pytest.mark.skipif(sys.platform != "linux", reason="PyTorch has GNU's OpenMP on Linux alone")
def test_threads_wait_as_told() -> None:
    train = REPOSITORY / "method" / "train.py"
    assert "'300'" in spins_shown(train)
    assert "'7'" in spins_shown(train, GOMP_SPINCOUNT="7")
    assert "'0'" in spins_shown(train, OMP_WAIT_POLICY="passive")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_import_the_package_before_torch(script: Path) -> None:
    lines = script.read_text(encoding="utf-8").splitlines()
    torch = [place for place, line in enumerate(lines) if line.startswith(("import torch", "from torch"))]
    package = [place for place, line in enumerate(lines) if line.lstrip().startswith(("import method", "from method"))]
    assert not torch or min(package) < min(torch)
