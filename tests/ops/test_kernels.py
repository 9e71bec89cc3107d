"""Kernels are there wherever the program may or may not write."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from method.ops.cpu import kernels

FOLDER = Path(kernels.__file__).parent
SAID = "compiling loops of the model for this machine, up to half a minute; once, if they can be kept\n"
DROP = """
import logging
import numpy as np
logging.basicConfig(level=logging.INFO, format="%(message)s")
logging.getLogger("numba").setLevel(logging.WARNING)
from method.ops.cpu import dropout, kernels
bits = np.ones(100_000, np.int16)
seed, thresholds, guide, scale = dropout.Draws.of(0.25)
kernels.drop_halves(bits, seed, thresholds, guide, 0, 7)
print(kernels.__file__, bits.mean())
"""


def drop(folder: Path, **environment: str) -> str:
    run = [sys.executable, "-c", DROP]
    kept = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    done = subprocess.run(run, cwd=folder, env={**kept, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    path, mean = done.stdout.split()
    assert Path(path).is_relative_to(folder)
    assert float(mean) == pytest.approx(0.75, abs=0.01)
    return done.stderr


@pytest.fixture
def program(tmp_path: Path) -> Path:
    shutil.copytree(FOLDER.parents[1], tmp_path / "method")
    return tmp_path


@pytest.mark.parametrize("content", [b"", b"not a list of kernels"])
def test_a_damaged_kernel_is_compiled_again(content: bytes, program: Path) -> None:
    drop(program)
    kept = list((program / "method/ops/cpu/__pycache__").glob("kernels.drop_halves*.nbi"))
    assert kept
    for path in kept:
        path.write_bytes(content)
    assert drop(program) == SAID


def test_kernels_that_were_kept_are_read(program: Path) -> None:
    drop(program)
    assert drop(program) == ""


def test_nowhere_to_keep_kernels(program: Path) -> None:
    shutil.rmtree(program / "method/ops/cpu/__pycache__")
    (program / "method/ops/cpu/__pycache__").touch()  # a file, below which nothing can be kept
    nowhere = str(program / "method/ops/cpu/__pycache__/kept")
    assert drop(program, NUMBA_CACHE_DIR=nowhere, XDG_CACHE_HOME=nowhere, HOME=nowhere) == SAID
