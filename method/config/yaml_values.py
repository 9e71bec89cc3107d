"""Values of YAML, typed as the flags are: the file of a dataset, and the branches of `--branches`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from method.config.parser import boolean
from method.data.edits import KINDS
from method.data.provenance import RECIPES
from method.model.branch_spec import check_branch_name
from method.runtime.errors import InputError, shown
from method.runtime.files import read_text

BASE = "base"  # key of a YAML file, and the name of the file in configs/ that is no dataset
BRANCH_FLAGS = {"action": "action_branch", "object": "phrase_action_branch"}  # the branches that flags make
_KEYS = ("key", "width", "attends_to", "weight", "offset_scale", "edits")
_REQUIRED = ("key", "width")

Table = dict[str, dict[str, Any]]


def read_yaml(
    path: Path,
    flags: Mapping[str, argparse.Action],
    shared: Path,
    *,
    optional: Sequence[str] = (),
    refused: str = "no such flag",
) -> dict[str, Any]:
    """Read the options of a dataset or a recipe, on top of those of the file that `base` names.

    Args:
        path: the YAML file.
        flags: those that may stand in it, by name.
        shared: folder of the base, unless it is beside `path`.
        optional: flags that may be null.
        refused: what is wrong with other keys, for messages.

    Raises:
        InputError: for a file that is missing or not YAML, and for other keys than the flags.
    """
    values = _load(path)
    base = values.pop(BASE, None)
    if base is None:
        return _typed_values(path, values, flags, optional, refused)
    if not isinstance(base, str):
        raise InputError(f"{path}: {BASE}: expected the name of a YAML file, found {shown(base)}")
    base_path = path.parent / base
    if not base_path.exists() and (shared / base).exists():
        base_path = shared / base
    return {
        **_typed_values(base_path, _load(base_path), flags, optional, refused),
        **_typed_values(path, values, flags, optional, refused),
    }


def _load(path: Path) -> dict[Any, Any]:
    values = parse_yaml(read_text(path), path)
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected 'flag: value' lines, found {type(values).__name__}")
    if values.get("recipe") in RECIPES:  # of an earlier version
        values = {"feature_recipe": values.pop("recipe"), **values}
    return values


def _typed_values(
    path: Path, values: Mapping[Any, Any], flags: Mapping[str, argparse.Action], optional: Sequence[str], refused: str
) -> dict[str, Any]:
    if unknown := [str(key) for key in values if key not in flags]:
        raise InputError(f"{path}: {', '.join(unknown)}: {refused}")
    return {
        key: None if value is None and key in optional else typed(flags[key], value, path)
        for key, value in values.items()
    }


def typed(action: Any, value: Any, source: Path | str) -> Any:
    """A value of a YAML file or of an earlier run, parsed as the flag parses it."""
    if action.type is branch_table:
        return branch_table(value, source)
    if not isinstance(value, bool | int | float | str):
        raise InputError(f"{source}: {action.dest}: expected one value, found {shown(value)}")
    try:
        if isinstance(action.default, bool):
            return boolean(str(value))
        parsed = _text(str(value)) if action.type is None else action.type(str(value))
    except argparse.ArgumentTypeError as error:
        raise InputError(f"{source}: {action.dest}: {error}") from None
    except ValueError:
        kind = f"a value of type {(action.type or str).__name__}"
        if isinstance(action.default, bool):
            kind = "true or false"
        raise InputError(f"{source}: {action.dest}: expected {kind}, found {shown(value)}") from None
    if action.choices is not None and parsed not in action.choices:
        raise InputError(f"{source}: {action.dest}: expected one of {', '.join(action.choices)}, found {shown(value)}")
    return parsed


def _text(text: str) -> str:
    """Text that can name a file; ValueError for what no file system accepts."""
    if b"\0" in os.fsencode(text):
        raise ValueError(text)
    return text


def branch_table(value: str | Mapping[Any, Any], source: Path | str = "--branches") -> Table:
    """Branches by name from YAML text or from what a YAML file holds; of each only the keys that were given.

    InputError, beginning with `source`, for anything that is not a table of branches.
    """
    where = place_of_branches(source)
    if isinstance(value, str):
        value = parse_yaml(value, where)
    expected = "expected 'name: {key: ..., width: ...}' for each branch"
    if not isinstance(value, Mapping):
        raise InputError(f"{where}: {expected}, found {shown(value)}")
    table: Table = {}
    for name, spec in value.items():
        try:
            check_branch_name(name)
        except ValueError as error:
            raise InputError(f"{where}.{error}") from error
        if not isinstance(spec, Mapping):
            raise InputError(f"{where}.{name}: {expected}, found {shown(spec)}")
        if unknown := [str(key) for key in spec if key not in _KEYS]:
            raise InputError(f"{where}.{name}: {', '.join(unknown)}: no such key, expected {', '.join(_KEYS)}")
        if missing := [key for key in _REQUIRED if spec.get(key) is None]:
            raise InputError(f"{where}.{name}: {' and '.join(missing)} missing")
        if name in BRANCH_FLAGS:
            raise InputError(
                f"{where}.{name}: --{BRANCH_FLAGS[name]} makes the branch of this name, expected another name"
            )
        if (edits := spec.get("edits")) not in (None, *KINDS):
            raise InputError(f"{where}.{name}.edits: expected one of {', '.join(KINDS)}, found {shown(edits)}")
        table[name] = {key: value for key, value in spec.items() if value is not None}
    return table


def place_of_branches(source: Path | str) -> str:
    """How messages name the table of branches that is from `source`: a file or the flag."""
    return "--branches" if str(source) == "--branches" else f"{source}: branches"


class _UniqueKeyLoader(yaml.SafeLoader):
    """Reads YAML, and refuses a key that stands twice in one mapping: the first would be lost without a word."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Make the mapping of a node."""
        seen = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode) and key_node.tag != "tag:yaml.org,2002:merge":
                if key_node.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"{key_node.value!r} occurs twice", key_node.start_mark
                    )
                seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str, source: Path | str) -> Any:
    """The content of YAML text. InputError, beginning with `source`, if it is none or a key stands twice."""
    try:
        return yaml.load(text, _UniqueKeyLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{source}: not valid YAML ({' '.join(str(error).split())})") from error
