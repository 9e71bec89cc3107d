"""How PyTorch's threads wait is configured before torch is imported, by every program."""

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


def start(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    words = [sys.executable, *command]
    return subprocess.run(
        words, cwd=REPOSITORY, env=kept | environment, capture_output=True, text=True, timeout=120, check=True
    )


@pytest.mark.skipif(sys.platform != "linux", reason="PyTorch has GNU's OpenMP on Linux alone")
def test_openmp_is_configured_before_torch_is_imported() -> None:
    """OpenMP prints the settings that it has read."""
    shown = start("-m", "method.train", "--help", OMP_DISPLAY_ENV="verbose").stderr
    assert "'300'" in "".join(line for line in shown.splitlines() if "GOMP_SPINCOUNT" in line)


@pytest.mark.parametrize(
    ("given", "expected"), [({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "passive"}, "None")]
)
def test_the_settings_of_the_user_are_kept(given: dict[str, str], expected: str) -> None:
    shown = start("-c", "import os, method; print(os.environ.get('GOMP_SPINCOUNT'))", **given).stdout
    assert shown == f"{expected}\n"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_import_the_package_before_torch(script: Path) -> None:
    lines = script.read_text(encoding="utf-8").splitlines()
    torch = [index for index, line in enumerate(lines) if line.startswith(("import torch", "from torch"))]
    package = [index for index, line in enumerate(lines) if line.lstrip().startswith(("import method", "from method"))]
    assert not torch or min(package) < min(torch)
