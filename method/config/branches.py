"""The branches of a model as the options name them: the two of the published flags, and those of `--branches`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from method.data.features import ACTION_KEY, OBJECT_KEY
from method.model.architecture import BranchSpec, check_branch_name, check_branches, fused_weights, two_branches
from method.runtime.errors import InputError, shown

log = logging.getLogger(__name__)

_KEYS = ("key", "width", "attends_to", "weight", "offset_scale")
_REQUIRED = ("key", "width")
_OF_FLAGS = {"action": "action_branch", "object": "phrase_action_branch"}

Table = dict[str, dict[str, Any]]


class UniqueKeyLoader(yaml.SafeLoader):
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


def branch_table(value: str | Mapping[Any, Any], source: Path | str = "--branches") -> Table:
    """Branches by name from YAML text or from what a YAML file holds; of each only the keys that were given.

    InputError, beginning with `source`, for anything that is not a table of branches.
    """
    where = source if str(source) == "--branches" else f"{source}: branches"
    if isinstance(value, str):
        try:
            value = yaml.load(value, UniqueKeyLoader)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise InputError(f"{where}: not valid YAML ({' '.join(str(error).split())})") from error
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
        if name in _OF_FLAGS:
            raise InputError(
                f"{where}.{name}: --{_OF_FLAGS[name]} makes the branch of this name, expected another name"
            )
        table[name] = {key: value for key, value in spec.items() if value is not None}
    return table


def make_branches(options: Mapping[str, Any]) -> dict[str, BranchSpec]:
    """The branches that the published flags make, and after them those of `--branches`."""
    i3d, clip = (ACTION_KEY, options["visual_feat_dim"]), (OBJECT_KEY, options["visual_flow_feat_dim"])
    branches = two_branches(
        i3d if options["action_branch"] else None,
        (clip if options["flow_feat"] else i3d) if options["phrase_action_branch"] else None,
        options["cross_attn_q"] if options["cross_branch_fusion"] else None,
        options["deformable_offset_scale"],
    )
    scale = {"offset_scale": options["deformable_offset_scale"]}
    return branches | {name: BranchSpec(**(scale | spec)) for name, spec in options["branches"].items()}


def check_branch_options(options: Mapping[str, Any], source: Path | str) -> None:
    """InputError for branches that no model can have together; `source` is where those of `--branches` are from."""
    branches = make_branches(options)
    try:
        check_branches(branches)
    except ValueError as error:
        where = source if str(source) == "--branches" else f"{source}: branches"
        raise InputError(f"{where}.{error}") from error
    idle = [name for name in options["branches"] if branches[name].attends_to]
    if idle and not options["cross_branch_fusion"]:
        log.warning("attends_to of %s has no effect without --cross_branch_fusion", ", ".join(idle))
    try:
        fused_weights(branches, options["fusion_weight"])
    except ValueError as error:
        raise InputError(f"--fusion_weight {options['fusion_weight']}: {error}") from error


def negative_branches(options: Mapping[str, Any]) -> tuple[str, ...]:
    """The branches that are trained with hard negative queries, in order."""
    if options["neg_query_loss"] is None:
        return ()
    chosen = {"i3d": ("action",), "clip": ("object",), "both": ("action", "object")}[options["neg_query_loss_branch"]]
    return tuple(branch for branch in chosen if options[_OF_FLAGS[branch]])
