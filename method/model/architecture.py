"""What a model is made of: the options that its weights depend on, stored with them in every checkpoint."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, Literal, get_args

from torch import nn

from method.runtime.errors import shown

Fusion = Literal["none", "attention", "deformable"]
Extent = Literal["padded", "valid"]

SECOND_OFFSET_SCALE = 2.0  # of the object branch when both attend to each other, whatever the option says

_LARGEST = 1 << 20  # of every size: no number of a file may ask for all memory, or be too large for a tensor
_SIZES = ["query_width", "hidden_size", "heads", "max_frames", "max_words", "fusion_heads"]
_SIZES += ["offset_groups", "offset_count", "offset_kernel"]
# What stands beside the branches in metrics.json and scores.npz.
_RESERVED = {"fused", "epoch", "videos", "queries", "moments", "checkpoint", "options", "environment"}
_RESERVED |= {"query_ids", "video_ids", "intervals", "bounds", "about", "multi_gt", "vcmr"}
_HOLDER = nn.ParameterDict()  # no module or parameter in it can be called as one of its own attributes
_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_CHOICES = {"fusion": Fusion, "fusion_extent": Extent}


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


@dataclass(frozen=True)
class Architecture:
    """The shape of a model.

    branches: by name, in order.
    fusion_extent: 'padded' reads past the end of a video as the published program does, 'valid' never does.
    temperatures: branches trained with hard negative queries, whose loss has a learned temperature.
    head: how frames become the keys of a video and how these are scored, a name in `method.model.retrieval.HEADS`.
    """

    branches: dict[str, BranchSpec]
    query_width: int
    hidden_size: int
    heads: int
    max_frames: int
    max_words: int
    input_dropout: float
    dropout: float
    initializer_range: float
    fusion: Fusion
    fusion_extent: Extent
    fusion_positions: bool
    fusion_heads: int
    offset_groups: int
    offset_count: int
    offset_kernel: int
    temperatures: tuple[str, ...]
    head: str = "frames"

    @property
    def streams(self) -> dict[str, tuple[str, int]]:
        """For each branch the name of its feature stream and its width."""
        return {name: (spec.key, spec.width) for name, spec in self.branches.items()}

    @property
    def fusions(self) -> dict[str, str]:
        """For each branch that is fused, by name, the branch that its frames attend to."""
        if self.fusion == "none":
            return {}
        return {name: spec.attends_to for name, spec in self.branches.items() if spec.attends_to is not None}

    def as_dict(self) -> dict[str, Any]:
        """The fields by name as plain values, as checkpoints keep them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Architecture:
        """The inverse of `as_dict`; reads the form of earlier versions too, and gives fields they lacked a default.

        ValueError for fields that are missing or unknown, and for what no model can have: another type, a size that is
        not from 1 to 2**20, heads that do not divide the width, and the like.
        """
        values = dict(values) if "branches" in values else _from_two_branches(values)
        _check_fields(cls, values, "field")
        _check_types(values)
        branches = values["branches"]
        if not isinstance(branches, dict) or not all(isinstance(spec, dict) for spec in branches.values()):
            raise ValueError(f"branches are {shown(branches)}, expected their fields by name")
        for name, spec in branches.items():
            _check_fields(BranchSpec, spec, f"field of branch {shown(name)}")
        architecture = cls(
            **{
                **values,
                "branches": {name: BranchSpec(**spec) for name, spec in branches.items()},
                "temperatures": tuple(values["temperatures"]),
            }
        )
        check_branches(architecture.branches)
        _check_together(architecture)
        return architecture


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


def fused_weights(branches: Mapping[str, BranchSpec], fusion_weight: float) -> dict[str, float]:
    """The weight of each branch in the fused score; they sum to 1.

    Before they are normalised the action branch has `fusion_weight`, the object branch 1 - `fusion_weight`, and any
    other its own weight, or if it has none its equal share. ValueError when they are all 0.

    >>> two = two_branches(("i3d_feat", 8), ("clip_feat", 8), None, 1.0)
    >>> fused_weights(two, 0.25)
    {'action': 0.25, 'object': 0.75}
    >>> fused_weights(two | {"audio": BranchSpec("audio_feat", 8, weight=1.0)}, 0.25)
    {'action': 0.125, 'object': 0.375, 'audio': 0.5}
    """
    if len(branches) == 1:
        return dict.fromkeys(branches, 1.0)
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
        if not _is_size(spec.width):
            raise ValueError(f"{name}.width: expected a whole number from 1 to {_LARGEST}, found {shown(spec.width)}")
        other, width = widths.setdefault(spec.key, (name, spec.width))
        if width != spec.width:
            raise ValueError(f"{name}.width: expected {width} as branch {other} has of {spec.key}, found {spec.width}")
        if spec.attends_to is not None and (spec.attends_to == name or spec.attends_to not in list(branches)):
            others = ", ".join(other for other in branches if other != name) or "no other"
            found = "itself" if spec.attends_to == name else shown(spec.attends_to)
            raise ValueError(f"{name}.attends_to: expected one of the branches {others}, found {found}")
        if spec.weight is not None and not _is_number(spec.weight, _LARGEST):
            raise ValueError(f"{name}.weight: expected a number from 0 to {_LARGEST}, found {shown(spec.weight)}")
        if not _is_number(spec.offset_scale, _LARGEST):
            raise ValueError(
                f"{name}.offset_scale: expected a number from 0 to {_LARGEST}, found {shown(spec.offset_scale)}"
            )


def _from_two_branches(values: Mapping[str, Any]) -> dict[str, Any]:
    """The form of the versions that had two branches, each with fields of its own."""
    old = ["action_width", "object_width", "object_sees", "fusion_asks", "offset_scale"]
    if missing := [name for name in old if name not in values]:
        raise ValueError(f"no branches, and no {', '.join(missing)} as older files have")
    if not _is_number(values["offset_scale"], _LARGEST):
        raise ValueError(f"offset_scale is {shown(values['offset_scale'])}, expected a number from 0 to {_LARGEST}")
    for name, choices in (("object_sees", ("i3d", "clip")), ("fusion_asks", ("i3d_q", "clip_q", "double_q"))):
        if not isinstance(values[name], str) or values[name] not in choices:
            raise ValueError(f"{name} is {shown(values[name])}, expected one of {', '.join(choices)}")
    action, object_ = values["action_width"], values["object_width"]
    branches = two_branches(
        ("i3d_feat", action) if action is not None else None,
        (f"{values['object_sees']}_feat", object_) if object_ is not None else None,
        values["fusion_asks"] if values.get("fusion") != "none" else None,
        values["offset_scale"],
    )
    rest = {name: value for name, value in values.items() if name not in old}
    return {"branches": {name: asdict(spec) for name, spec in branches.items()}, **rest}


def _check_fields(kind: type[Any], values: Mapping[Any, Any], what: str) -> None:
    known = {field.name: field.default is MISSING for field in fields(kind)}
    if unknown := [shown(name) for name in values if name not in known]:
        raise ValueError(f"{', '.join(sorted(unknown))}: no such {what}")
    if missing := [name for name, required in known.items() if required and name not in values]:
        raise ValueError(f"{', '.join(missing)}: missing {what}")


def _is_number(value: Any, largest: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= largest


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _LARGEST


def _check_types(values: Mapping[str, Any]) -> None:
    def require(name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise ValueError(f"{name} is {shown(values[name])}, expected {expected}")

    for name in _SIZES:
        require(name, _is_size(values[name]), f"a whole number from 1 to {_LARGEST}")
    for name, choices in _CHOICES.items():
        known = isinstance(values[name], str) and values[name] in get_args(choices)
        require(name, known, f"one of {', '.join(get_args(choices))}")
    for name in ("input_dropout", "dropout"):
        require(name, _is_number(values[name], 1) and values[name] < 1, "a fraction from 0 to below 1")
    require("initializer_range", _is_number(values["initializer_range"], _LARGEST), f"a number from 0 to {_LARGEST}")
    require("fusion_positions", isinstance(values["fusion_positions"], bool), "True or False")
    require("head", isinstance(values.get("head", ""), str), "the name of a head")
    temperatures = values["temperatures"]
    are_names = isinstance(temperatures, tuple | list) and all(isinstance(name, str) for name in temperatures)
    require("temperatures", are_names, "names of branches")


def _check_together(model: Architecture) -> None:
    fused, deformable = model.fusion != "none", model.fusion == "deformable"
    if not model.branches or (fused and not model.fusions):
        attending = ", none of which attends to another" if model.branches else ""
        raise ValueError(
            f"branches are {', '.join(model.branches) or 'none'}{attending}, the fusion is {model.fusion!r}"
        )
    if not set(model.temperatures) <= set(model.branches):
        raise ValueError(f"temperatures are not those of the branches {', '.join(model.branches)}")
    for name, matters in (("heads", True), ("fusion_heads", fused), ("offset_groups", deformable)):
        if matters and model.hidden_size % getattr(model, name):
            raise ValueError(f"{name} {getattr(model, name)} do not divide the hidden_size {model.hidden_size}")
    if deformable and model.offset_kernel % 2 == 0:
        raise ValueError(f"offset_kernel is {model.offset_kernel}, expected an odd number")
    if deformable and model.fusion_positions and model.max_frames > 128:
        raise ValueError(f"max_frames are {model.max_frames}, expected at most 128 with fusion_positions")
