"""The examples in docstrings are right."""

import doctest
import importlib

import pytest

from tests.helpers.paths import REPOSITORY

MODULES = [
    ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
    for folder in ("method", "utils", "benchmarks")
    for path in sorted((REPOSITORY / folder).rglob("*.py"))
    if ">>>" in path.read_text(encoding="utf-8")
]


def test_examples_are_found() -> None:
    assert "method.evaluation.metrics" in MODULES


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    module = importlib.import_module(name)
    result = doctest.testmod(module, extraglobs={"torch": importlib.import_module("torch")})
    assert result.attempted > 0
    assert result.failed == 0
