"""The YAML file of a dataset made from one's own videos: it lies beside the features, and `--dataset_name` finds it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from method.data.features import ACTION_KEY, OBJECT_KEY
from method.runtime.errors import InputError
from method.runtime.files import read_text, write_text

WIDTH_FLAGS = {ACTION_KEY: "visual_feat_dim", OBJECT_KEY: "visual_flow_feat_dim"}  # of each published stream


def own_folder(root: Path, name: str) -> Path:
    """The folder of a dataset below `root`. InputError for a name that is not that of a folder."""
    if name in ("", "..") or Path(name).name != name or name != name.strip():
        raise InputError(f"--dataset_name {name!r}: expected the name of a folder, not a path")
    return root / "dataset" / f"{name}_i3d"


def own_yaml(root: Path, name: str) -> Path:
    """The YAML file of a dataset below `root`. InputError as `own_folder`."""
    return own_folder(root, name) / f"{name}.yaml"


def own_features(root: Path, name: str) -> Path:
    """The video features of a dataset below `root`. InputError as `own_folder`."""
    return own_folder(root, name) / "FeatureData" / f"{name}_clip_i3d_numpy.hdf5"


def update_yaml(path: Path, values: Mapping[str, Any]) -> None:
    """Set keys of a dataset's YAML file, which is written on top of `base.yaml` if it does not exist.

    Other lines, such as the user's own settings and comments, stay as they are.

    Args:
        path: of the YAML file.
        values: key -> a single value; None removes the key.
    """
    before = read_text(path) if path.exists() else "base: base.yaml\n"
    lines = before.splitlines()
    for key, value in values.items():
        places = [number for number, line in enumerate(lines) if re.match(rf"{re.escape(key)}\s*:", line)]
        new = [] if value is None else yaml.safe_dump({key: value}, allow_unicode=True, width=1 << 20).splitlines()
        at = places[0] if places else len(lines)
        lines[at : at + len(places[:1])] = new
    text = "".join(f"{line}\n" for line in lines)
    if text != before or not path.exists():
        write_text(path, text)
