"""Recipes: which frames of a video, which network and which layer make the features of a dataset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """How the two feature streams of a dataset are made. `name` is that of the dataset: charades or activitynet."""

    name: str

    def to_dict(self) -> dict[str, Any]:
        """The whole definition in values that JSON has; equal definitions have equal dictionaries."""
        raise NotImplementedError


def find_recipe(name: str) -> Recipe:
    """A recipe by name. InputError for TVR, whose I3D weights do not exist for PyTorch, and for unknown names."""
    raise NotImplementedError
