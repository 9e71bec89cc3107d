"""What a model is made of: the options that its weights depend on, stored with them in every checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, Literal, get_args

from method.model.branch_spec import LARGEST, BranchSpec, check_branches, is_number, is_size, two_branches
from method.runtime.errors import shown

Fusion = Literal["none", "attention", "deformable"]
Extent = Literal["padded", "valid"]
Attention = Literal["plain", "gaussian"]

_SIZES = ["query_width", "hidden_size", "heads", "max_frames", "max_words", "fusion_heads"]
_SIZES += ["offset_groups", "offset_count", "offset_kernel"]
_CHOICES = {"fusion": Fusion, "fusion_extent": Extent, "attention": Attention}


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The shape of a model.

    branches: by name, in order.
    fusion_extent: 'padded' reads past the end of a video as the published program does, 'valid' never does.
    temperatures: branches trained with hard negative queries, whose loss has a learned temperature.
    head: how frames become the keys of a video and how these are scored, a name in `method.model.retrieval.HEADS`.
    clip_weight: of the best clips in the head "clips"; the best frame has the rest of 1.
    attention: self-attention of the frame encoders, 'plain' or 'gaussian' (`method.model.encoders.GaussianAttention`).
    registers: learned rows that each frame attends to besides the frames.
    fusion_gradient: whether the losses of a fused branch also train the encoder of the branch that it attends to.
    query_weights: whether the weights of the branches depend on the query (`method.model.query_weights`).
    frame_drop, token_drop, feature_noise: augmentation in training, see `method.model.augmentation`.
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
    clip_weight: float = 0.7
    attention: Attention = "plain"
    registers: int = 0
    fusion_gradient: bool = False
    query_weights: bool = False
    frame_drop: float = 0.0
    token_drop: float = 0.0
    feature_noise: float = 0.0

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
        """The fields by name as plain values, as checkpoints keep them.

        Without options that are off, so that what earlier versions wrote and read stays the same.
        """
        return {name: value for name, value in asdict(self).items() if name not in _OFF or value != _OFF[name]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Architecture:
        """The inverse of `as_dict`; reads the form of earlier versions too, and gives fields they lacked a default.

        ValueError for fields that are missing or unknown, and for what no model can have: another type, a size that is
        not from 1 to 2**20, heads that do not divide the width, and the like.
        """
        values = dict(values) if "branches" in values else _from_two_branches(values)
        _check_fields(cls, values, "field")
        values = {**_OFF, **values}
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


# Options that came after the first checkpoints, and their values where they are off.
_OFF = {field.name: field.default for field in fields(Architecture) if field.default is not MISSING}
_OFF.pop("head")  # always written


def _from_two_branches(values: Mapping[str, Any]) -> dict[str, Any]:
    """The form of the versions that had two branches, each with fields of its own."""
    old = ["action_width", "object_width", "object_sees", "fusion_asks", "offset_scale"]
    if missing := [name for name in old if name not in values]:
        raise ValueError(f"no branches, and no {', '.join(missing)} as older files have")
    if not is_number(values["offset_scale"], LARGEST):
        raise ValueError(f"offset_scale is {shown(values['offset_scale'])}, expected a number from 0 to {LARGEST}")
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


def _check_types(values: Mapping[str, Any]) -> None:
    def require(name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise ValueError(f"{name} is {shown(values[name])}, expected {expected}")

    for name in _SIZES:
        require(name, is_size(values[name]), f"a whole number from 1 to {LARGEST}")
    for name, choices in _CHOICES.items():
        known = isinstance(values[name], str) and values[name] in get_args(choices)
        require(name, known, f"one of {', '.join(get_args(choices))}")
    for name in ("input_dropout", "dropout", "frame_drop", "token_drop"):
        require(name, is_number(values[name], 1) and values[name] < 1, "a fraction from 0 to below 1")
    require("initializer_range", is_number(values["initializer_range"], LARGEST), f"a number from 0 to {LARGEST}")
    require("feature_noise", is_number(values["feature_noise"], LARGEST), f"a number from 0 to {LARGEST}")
    for name in ("fusion_positions", "fusion_gradient", "query_weights"):
        require(name, isinstance(values[name], bool), "True or False")
    registers = values["registers"]
    require("registers", registers == 0 or is_size(registers), f"a whole number from 0 to {LARGEST}")
    require("head", isinstance(values.get("head", ""), str), "the name of a head")
    require("clip_weight", is_number(values["clip_weight"], 1), "a fraction from 0 to 1")
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
    if model.query_weights and len(model.branches) < 2:
        raise ValueError("query_weights is True, expected two branches or more with it")
    if not set(model.temperatures) <= set(model.branches):
        raise ValueError(f"temperatures are not those of the branches {', '.join(model.branches)}")
    for name, matters in (("heads", True), ("fusion_heads", fused), ("offset_groups", deformable)):
        if matters and model.hidden_size % getattr(model, name):
            raise ValueError(f"{name} {getattr(model, name)} do not divide the hidden_size {model.hidden_size}")
    if model.registers and model.attention != "plain":
        raise ValueError(f"registers are {model.registers}, expected 0 with attention {model.attention!r}")
    if deformable and model.offset_kernel % 2 == 0:
        raise ValueError(f"offset_kernel is {model.offset_kernel}, expected an odd number")
    if deformable and model.fusion_positions and model.max_frames > 128:
        raise ValueError(f"max_frames are {model.max_frames}, expected at most 128 with fusion_positions")
