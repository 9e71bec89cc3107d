"""What a model is made of: the options that its weights depend on, stored with them in every checkpoint."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

Fusion = Literal["none", "attention", "deformable"]
Asks = Literal["i3d_q", "clip_q", "double_q"]
Extent = Literal["padded", "valid"]


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
    object_sees: Literal["i3d", "clip"]
    query_width: int
    hidden_size: int
    heads: int
    max_frames: int
    max_words: int
    input_dropout: float
    dropout: float
    initializer_range: float
    fusion: Fusion
    fusion_asks: Asks
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
        """The inverse of `as_dict`; ValueError when a field is missing or unknown."""
        names = {field.name for field in fields(cls)}
        if set(values) != names:
            raise ValueError(f"architecture fields differ: {sorted(set(values) ^ names)}")
        return cls(**{**values, "temperatures": tuple(values["temperatures"])})
