"""The layers of method/: a folder imports only from folders before it, and nothing imports an entry point."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

METHOD = Path(__file__).resolve().parents[1] / "method"
# Folders on one line do not import each other.
LAYERS = [
    ["runtime"],
    ["data"],
    ["ops", "text", "video"],
    ["model"],
    ["config"],
    ["negatives", "evaluation"],
    ["training", "serving"],
    ["train", "evaluate", "search"],
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
FILES = sorted(METHOD.rglob("*.py"))


def imported_modules(path: Path) -> Iterator[str]:
    """Modules of this repository that a file imports anywhere, functions included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_the_root_holds_the_entry_points_alone() -> None:
    assert {path.stem for path in METHOD.glob("*.py")} == {"__init__", *LAYERS[-1]}
    assert {path.name for path in METHOD.iterdir() if path.is_dir() and path.name != "__pycache__"} == {
        name for names in LAYERS[:-1] for name in names
    }


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(METHOD)) for path in FILES])
def test_imports_only_what_stands_before_it(path: Path) -> None:
    own = path.relative_to(METHOD).with_suffix("").parts[0]
    if own == "__init__":
        return
    parts = {module.split(".")[1] for module in imported_modules(path) if module.startswith("method.")} & LEVEL.keys()
    wrong = [part for part in parts - {own} if LEVEL[part] >= LEVEL[own]]
    assert wrong == []
    assert not [module for module in imported_modules(path) if module.split(".")[0] in ("utils", "tests", "benchmarks")]


def test_no_circle_between_modules() -> None:
    names = {".".join(("method", *path.relative_to(METHOD).with_suffix("").parts)): path for path in FILES}
    imports = {name: {module for module in imported_modules(path) if module in names} for name, path in names.items()}
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join((*above[above.index(name) :], name))
        if name not in done:
            for module in imports[name]:
                visit(module, (*above, name))
            done.add(name)

    for name in names:
        visit(name, ())
