"""What a model is made of: the options that its weights depend on, stored with them in every checkpoint."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from method.runtime.errors import shown

Fusion = Literal["none", "attention", "deformable"]
FusionQuery = Literal["i3d_q", "clip_q", "double_q"]
Extent = Literal["padded", "valid"]
Stream = Literal["i3d", "clip"]

_LARGEST = 1 << 20  # of every size: no number of a file may ask for all memory, or be too large for a tensor
_WIDTHS = ("action_width", "object_width")
_SIZES = (
    *("query_width", "hidden_size", "heads", "max_frames", "max_words", "fusion_heads"),
    *("offset_groups", "offset_count", "offset_kernel"),
)
_CHOICES = {"object_sees": Stream, "fusion": Fusion, "fusion_asks": FusionQuery, "fusion_extent": Extent}


@dataclass(frozen=True)
class Architecture:
    """The shape of a model.

    action_width, object_width: width of the features that a branch sees; None switches the branch off.
    object_sees: the feature stream of the object branch.
    fusion_asks: whose frames attend: the action frames (i3d_q), the object frames (clip_q), or both (double_q).
    fusion_extent: 'padded' reads past the end of a video as the published program does, 'valid' never does.
    offset_scale: largest offset in frames; the second fusion of double_q always has 2.
    temperatures: branches trained with hard negative queries, whose loss has a learned temperature.
    """

    action_width: int | None
    object_width: int | None
    object_sees: Stream
    query_width: int
    hidden_size: int
    heads: int
    max_frames: int
    max_words: int
    input_dropout: float
    dropout: float
    initializer_range: float
    fusion: Fusion
    fusion_asks: FusionQuery
    fusion_extent: Extent
    fusion_positions: bool
    fusion_heads: int
    offset_groups: int
    offset_count: int
    offset_scale: float
    offset_kernel: int
    temperatures: tuple[str, ...]

    @property
    def branches(self) -> tuple[str, ...]:
        """Names of the branches that are on, in order."""
        widths = {"action": self.action_width, "object": self.object_width}
        return tuple(name for name, width in widths.items() if width is not None)

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, as checkpoints keep them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Architecture:
        """The inverse of `as_dict`.

        ValueError for fields that are missing or unknown, and for what no model can have: another type, a size that is
        not from 1 to 2**20, heads that do not divide the width, and the like.
        """
        names = {field.name for field in fields(cls)}
        if set(values) != names:
            raise ValueError(f"fields differ: {', '.join(sorted(map(shown, set(values) ^ names)))}")
        _check_types(values)
        architecture = cls(**{**values, "temperatures": tuple(values["temperatures"])})
        _check_together(architecture)
        return architecture


def _check_types(values: dict[str, Any]) -> None:
    def require(name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise ValueError(f"{name} is {shown(values[name])}, expected {expected}")

    def is_number(name: str) -> bool:
        return isinstance(values[name], int | float) and not isinstance(values[name], bool)

    def is_size(name: str) -> bool:
        return is_number(name) and isinstance(values[name], int) and 1 <= values[name] <= _LARGEST

    for name in _SIZES:
        require(name, is_size(name), f"a whole number from 1 to {_LARGEST}")
    for name in _WIDTHS:
        require(name, values[name] is None or is_size(name), f"None or a whole number from 1 to {_LARGEST}")
    for name, choices in _CHOICES.items():
        known = isinstance(values[name], str) and values[name] in get_args(choices)
        require(name, known, f"one of {', '.join(get_args(choices))}")
    for name in ("input_dropout", "dropout"):
        require(name, is_number(name) and 0 <= values[name] < 1, "a fraction from 0 to below 1")
    for name in ("initializer_range", "offset_scale"):
        require(name, is_number(name) and 0 <= values[name] <= _LARGEST, f"a number from 0 to {_LARGEST}")
    require("fusion_positions", isinstance(values["fusion_positions"], bool), "True or False")
    temperatures = values["temperatures"]
    are_names = isinstance(temperatures, tuple | list) and all(isinstance(name, str) for name in temperatures)
    require("temperatures", are_names, "names of branches")


def _check_together(model: Architecture) -> None:
    fused, deformable = model.fusion != "none", model.fusion == "deformable"
    if len(model.branches) < (2 if fused else 1):
        raise ValueError(f"branches are {', '.join(model.branches) or 'none'}, the fusion is {model.fusion!r}")
    if not set(model.temperatures) <= set(model.branches):
        raise ValueError(f"temperatures are not those of the branches {', '.join(model.branches)}")
    for name, matters in (("heads", True), ("fusion_heads", fused), ("offset_groups", deformable)):
        if matters and model.hidden_size % getattr(model, name):
            raise ValueError(f"{name} {getattr(model, name)} do not divide the hidden_size {model.hidden_size}")
    if deformable and model.offset_kernel % 2 == 0:
        raise ValueError(f"offset_kernel is {model.offset_kernel}, expected an odd number")
    if deformable and model.fusion_positions and model.max_frames > 128:
        raise ValueError(f"max_frames are {model.max_frames}, expected at most 128 with fusion_positions")
