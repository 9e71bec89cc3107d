"""Kernels are compiled once and cached, if the cache is writable."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from method.ops.cpu import kernels

SOURCE = """
import numba as nb
from method.ops.cpu.kernels import kernel

@kernel((nb.types.Array(nb.float32, 1, "C"),), (nb.types.Array(nb.int16, 1, "C"),))
def double(values):
    for v in range(values.shape[0]):
        values[v] *= 2
"""


class Program:
    """A module with a kernel; each `load` imports it as a new process would."""

    def __init__(self, folder: Path) -> None:
        self.source = folder / "doubling.py"
        self.source.write_text(SOURCE)
        self.cache = folder / "__pycache__"

    def load(self) -> Any:
        """Compilation statistics of the kernel after a call."""
        spec = importlib.util.spec_from_file_location("doubling", self.source)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for dtype in (np.float32, np.int16):
            values = np.arange(3, dtype=dtype)
            module.double(values)
            assert values.tolist() == [0, 2, 4]
        return module.double.stats


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    return Program(tmp_path)


def test_kernels_are_compiled_once(program: Program, caplog: pytest.LogCaptureFixture) -> None:
    kernels._log_compilation.cache_clear()
    with caplog.at_level(logging.INFO, "method"):
        assert sum(program.load().cache_misses.values()) == 2
        assert caplog.messages == ["Compiling CPU kernels (first run only, up to 30 s)"]
        assert sum(program.load().cache_hits.values()) == 2
        assert len(caplog.messages) == 1


@pytest.mark.parametrize("suffix", ["nbi", "nbc"])
@pytest.mark.parametrize("content", [b"", b"damaged"])
def test_a_corrupt_cache_is_rebuilt(suffix: str, content: bytes, program: Program) -> None:
    program.load()
    (first, *_) = program.cache.glob(f"*.{suffix}")
    first.write_bytes(content)
    program.load()
    assert sum(program.load().cache_hits.values()) == 2


def test_kernels_run_without_a_cache(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    program.cache.touch()  # a file, in which nothing can be cached
    for variable in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.setenv(variable, str(program.cache / "below"))
    assert not program.load().cache_hits
