"""Training recipes: YAML files with flags of the model, its losses and the training, chosen by `--recipe`.

A recipe wins over the YAML file of the dataset, and an earlier run and flags over the recipe.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from method.config.parser import PUBLISHED, Parser
from method.config.yaml_values import read_yaml
from method.runtime.errors import InputError

_GROUPS = ("model", "training", "hard negative queries")
# Flags of these groups that say what the data are, or where.
_OF_THE_DATA = {"visual_feat_dim", "visual_flow_feat_dim", "q_feat_size", "branches", "neg_cache"}
_OF_THE_DATA |= {"id_action_dict", "total_action_dict", "id_object_dict", "total_object_dict"}
_OF_THE_FUSED_SCORE = "fusion_weight"  # which has losses of its own
_REFUSED = "not in a recipe, which has flags of the model, its losses and the training alone"


def recipe_flags(parser: Parser) -> dict[str, argparse.Action]:
    """The flags that a recipe may set, by name."""
    return {
        action.dest: action
        for group in parser._action_groups
        for action in group._group_actions
        if action.dest == _OF_THE_FUSED_SCORE or (group.title in _GROUPS and action.dest not in _OF_THE_DATA)
    }


def read_recipe(recipe: str | Path, parser: Parser, folder: Path) -> dict[str, Any]:
    """The flags of a recipe, on top of those of the file that `base` names; none for `published`.

    Args:
        recipe: a name, or a YAML file of one's own.
        parser: of the flags.
        folder: that of the recipes with a name.

    Raises:
        InputError: for an unknown name, a file that is missing or not YAML, and keys that a recipe may not set.
    """
    if recipe == PUBLISHED:
        return {}
    path = recipe if isinstance(recipe, Path) else folder / f"{recipe}.yaml"
    if not isinstance(recipe, Path) and not path.exists():
        names = ", ".join([PUBLISHED, *sorted(file.stem for file in folder.glob("*.yaml"))])
        raise InputError(f"--recipe {recipe}: expected one of {names}, or the path of a YAML file")
    return read_yaml(path, recipe_flags(parser), folder, refused=_REFUSED)
