"""The branches of a model as data: what each sees, whom it attends to, and its weight in the fused score."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from method.runtime.errors import shown

SECOND_OFFSET_SCALE = 2.0  # of the object branch when both attend to each other, whatever the option says

LARGEST = 1 << 20  # of every size: no number of a file may ask for all memory, or be too large for a tensor
# What stands beside the branches in metrics.json and scores.npz.
_RESERVED = {"fused", "epoch", "videos", "queries", "moments", "checkpoint", "options", "environment"}
_RESERVED |= {"query_ids", "video_ids", "intervals", "bounds", "about", "multi_gt", "vcmr", "weights"}
_HOLDER = nn.ParameterDict()  # no module or parameter in it can be called as one of its own attributes
_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class BranchSpec:
    """One branch: what it sees, whom it attends to, and what it counts.

    key: name of its stream in the feature file, such as i3d_feat. width: of the stream.
    attends_to: the branch whose unfused frames its frames attend to; None: it is not fused.
    weight: in the fused score, relative to the other branches; None: `--fusion_weight` decides.
    offset_scale: largest offset of its deformable attention, in frames.
    """

    key: str
    width: int
    attends_to: str | None = None
    weight: float | None = None
    offset_scale: float = 0.0


def two_branches(
    action: tuple[str, int] | None, object_: tuple[str, int] | None, query: str | None, offset_scale: float
) -> dict[str, BranchSpec]:
    """The branches of the published model.

    Args:
        action: key and width of the stream that the action branch sees; None switches it off.
        object_: the same of the object branch.
        query: whose frames attend to the other's: 'i3d_q' the action branch's, 'clip_q' the object branch's, 'double_q'
            both; None: no fusion.
        offset_scale: largest offset of the deformable attention, in frames.
    """
    both = action is not None and object_ is not None
    branches = {}
    if action is not None:
        attends_to = "object" if both and query in ("i3d_q", "double_q") else None
        branches["action"] = BranchSpec(*action, attends_to, offset_scale=offset_scale)
    if object_ is not None:
        attends_to = "action" if both and query in ("clip_q", "double_q") else None
        scale = SECOND_OFFSET_SCALE if query == "double_q" else offset_scale
        branches["object"] = BranchSpec(*object_, attends_to, offset_scale=scale)
    return branches


def fused_weights(branches: Mapping[str, BranchSpec], fusion_weight: float | None) -> dict[str, float]:
    """The weight of each branch in the fused score; they sum to 1.

    Before they are normalised the action branch has `fusion_weight`, the object branch 1 - `fusion_weight`, and any
    other its own weight, or if it has none its equal share. None counts as 0.5. ValueError when they are all 0.

    >>> two = two_branches(("i3d_feat", 8), ("clip_feat", 8), None, 1.0)
    >>> fused_weights(two, 0.25)
    {'action': 0.25, 'object': 0.75}
    >>> fused_weights(two | {"audio": BranchSpec("audio_feat", 8, weight=1.0)}, 0.25)
    {'action': 0.125, 'object': 0.375, 'audio': 0.5}
    """
    if len(branches) == 1:
        return dict.fromkeys(branches, 1.0)
    if fusion_weight is None:
        fusion_weight = 0.5
    published = {"action": fusion_weight, "object": 1 - fusion_weight}
    weights = {}
    for name, spec in branches.items():
        own = published.get(name, 1 / len(branches))
        weights[name] = own if spec.weight is None else spec.weight
    if set(weights) == set(published):
        return weights  # they sum to 1 already, and stay exactly what they are
    total = sum(weights.values())
    if not total:
        raise ValueError(f"the weights of the branches {', '.join(branches)} in the fused score are all 0")
    return {name: weight / total for name, weight in weights.items()}


def check_branch_name(name: object) -> None:
    """ValueError that begins with the name, for one that no branch can have."""
    if not isinstance(name, str) or not (name.isascii() and name.isidentifier()) or name.startswith("_"):
        raise ValueError(f"{shown(name)}: expected a name of letters, digits and _ that begins with a letter")
    if name in _RESERVED or hasattr(_HOLDER, name):
        raise ValueError(f"{name}: this name is reserved, expected another")


def check_branches(branches: Mapping[str, BranchSpec]) -> None:
    """ValueError that begins with the branch, and where there is one the field, that no model can have."""
    widths: dict[str, tuple[str, int]] = {}
    for name, spec in branches.items():
        check_branch_name(name)
        if not isinstance(spec.key, str) or not _KEY.fullmatch(spec.key) or spec.key == "tokens":
            raise ValueError(f"{name}.key: expected the name of a stream in the feature file, found {shown(spec.key)}")
        if not is_size(spec.width):
            raise ValueError(f"{name}.width: expected a whole number from 1 to {LARGEST}, found {shown(spec.width)}")
        other, width = widths.setdefault(spec.key, (name, spec.width))
        if width != spec.width:
            raise ValueError(f"{name}.width: expected {width} as branch {other} has of {spec.key}, found {spec.width}")
        if spec.attends_to is not None and (spec.attends_to == name or spec.attends_to not in list(branches)):
            others = ", ".join(other for other in branches if other != name) or "no other"
            found = "itself" if spec.attends_to == name else shown(spec.attends_to)
            raise ValueError(f"{name}.attends_to: expected one of the branches {others}, found {found}")
        if spec.weight is not None and not is_number(spec.weight, LARGEST):
            raise ValueError(f"{name}.weight: expected a number from 0 to {LARGEST}, found {shown(spec.weight)}")
        if not is_number(spec.offset_scale, LARGEST):
            raise ValueError(
                f"{name}.offset_scale: expected a number from 0 to {LARGEST}, found {shown(spec.offset_scale)}"
            )


def is_number(value: Any, largest: float) -> bool:
    """Whether a value of a file is a number from 0 to `largest`."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= largest


def is_size(value: Any) -> bool:
    """Whether a value of a file is a size: a whole number from 1 to `LARGEST`."""
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= LARGEST
