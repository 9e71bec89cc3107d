"""The configurations and the data of an ablation: names and the flags of method/train.py that they stand for."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from method.config.parser import PUBLISHED
from method.config.yaml_values import parse_yaml
from method.runtime.errors import InputError
from method.runtime.files import read_text

Values = Mapping[str, Any]

_NAME = re.compile(r"\w[\w.+-]*")  # of a folder


def read_changes(path: Path) -> dict[str, Values]:
    """The changes of a YAML file. InputError for anything but names with flags."""
    content = parse_yaml(read_text(path), path)
    if not isinstance(content, dict) or not all(
        isinstance(own, dict) and _NAME.fullmatch(str(name)) for name, own in content.items()
    ):
        raise InputError(f"{path}: expected 'name: {{flag: value}}' for each change")
    return {str(name): own for name, own in content.items()}


def configurations(changes: Mapping[str, Values], name: str, recipe: Values) -> dict[str, Values]:
    """The flags of each configuration: the baseline, each change, the recipe, and it without each of its parts.

    The flags of a recipe that one change sets are one part, each of the others is another. InputError for a change that
    has the name of the baseline or of the recipe.

    >>> for name, flags in configurations({"a": {"x": 1, "y": 2}}, "plus", {"x": 1, "w": 0, "y": 5}).items():
    ...     print(name, flags)
    published {}
    a {'x': 1, 'y': 2}
    plus {'x': 1, 'w': 0, 'y': 5}
    plus without a {'w': 0}
    plus without w {'x': 1, 'y': 5}
    """
    if taken := {PUBLISHED, name} & changes.keys():
        raise InputError(f"change {taken.pop()}: the name of a recipe, expected another")
    parts: dict[str, list[str]] = {}
    for flag in recipe:
        part = next((change for change, own in changes.items() if flag in own), flag)
        parts.setdefault(part, []).append(flag)
    without = {
        f"{name} without {part}": {flag: value for flag, value in recipe.items() if flag not in own}
        for part, own in parts.items()
    }
    return {PUBLISHED: {}, **changes, name: recipe, **(without if len(parts) > 1 else {})}


def as_flags(values: Values) -> list[str]:
    """Values of a YAML file as words of a command line.

    >>> as_flags({"ema": 0.9, "flow_feat": False, "grad_clip": -1})
    ['--ema=0.9', '--flow_feat=false', '--grad_clip=-1']
    """
    return [f"--{name}={str(value).lower() if isinstance(value, bool) else value}" for name, value in values.items()]


def parse_world(text: str) -> tuple[str, list[str]]:
    """The name and the flags of a world.

    >>> parse_world("A=/data/A --dataset_name tvr")
    ('A', ['--root_path', '/data/A', '--dataset_name', 'tvr'])
    """
    name, _, rest = text.partition("=")
    try:
        folder, *flags = shlex.split(rest)
    except ValueError:
        folder, flags = "", []
    if not folder or not _NAME.fullmatch(name):
        raise InputError(f"--world {text}: expected NAME=FOLDER, and behind it flags of method/train.py")
    return name, ["--root_path", folder, *flags]
