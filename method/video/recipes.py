"""Recipes: which frames of a video, which network and which layer make the features of a dataset.

They restate how the published feature files were made (LGI, VSLNet and piergiaj/pytorch-i3d for I3D; DL-DKD for CLIP),
so that features made here fit checkpoints trained on those files.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

from method.runtime.errors import InputError
from method.runtime.files import digest_of
from method.video.i3d import FRAME_SIZE, FRAMES_PER_ROW

VERSION = 1  # of what the code makes of a recipe; to be raised when features of an unchanged recipe change


@dataclass(frozen=True)
class I3DRecipe:
    """How I3D sees a video.

    weights: name of the published weight file.
    rate: frames a second; None for every frame of the file.
    shorter_side: to which frames are scaled, bilinear without antialiasing, before the central square is cut out.
    enlarge_only: whether frames of a longer shorter side are left as large as they are.
    window, before, behind: the network sees `window` frames at a time, with so many frames of context on either side.
        Rows of the context are dropped, which leaves one row every 8 frames. If at most `behind` frames follow a
        window, it is the last one and keeps their rows. Windows without context are one row each, and an incomplete
        one at the end is dropped.
    min_frames: a shorter video repeats its last frame up to this number, for one row.
    side: of the central square that the network sees; even.
    """

    weights: str
    rate: Fraction | None
    shorter_side: int
    enlarge_only: bool
    window: int
    before: int
    behind: int
    min_frames: int
    side: int = FRAME_SIZE

    @property
    def rows_per_window(self) -> int:
        """Rows of a window without those of its context."""
        return self.window // FRAMES_PER_ROW if self.behind else 1

    @property
    def row_rate(self) -> Fraction | None:
        """Rows a second; None if it depends on the video's own rate."""
        return None if self.rate is None else self.rate * self.rows_per_window / self.window


@dataclass(frozen=True)
class ClipRecipe:
    """How CLIP sees a video: an image embedding, projected and not normalised, of `rate` frames a second."""

    rate: Fraction

    @property
    def row_rate(self) -> Fraction | None:
        """Rows a second."""
        return self.rate


@dataclass(frozen=True)
class Recipe:
    """How the two feature streams of a dataset are made. `name` is that of the dataset, or small."""

    name: str
    i3d_feat: I3DRecipe
    clip_feat: ClipRecipe

    def to_dict(self) -> dict[str, Any]:
        """The whole definition in values that JSON has; equal definitions have equal dictionaries."""
        return {"version": VERSION, **_plain(asdict(self))}

    @property
    def digest(self) -> str:
        """SHA-256 of the definition."""
        return digest_of(self.to_dict())


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "charades",
            I3DRecipe("rgb_charades.pt", Fraction(24), 226, True, window=1600, before=48, behind=56, min_frames=16),
            ClipRecipe(Fraction(3)),
        ),
        Recipe(
            "activitynet",
            I3DRecipe("rgb_imagenet.pt", None, 224, False, window=16, before=0, behind=0, min_frames=16),
            ClipRecipe(Fraction(15, 8)),
        ),
        # For small encoders of these forms, such as the demo's: seconds for an hour of small videos.
        Recipe(
            "small",
            I3DRecipe(
                "i3d_small.pt", Fraction(8), 16, False, window=1600, before=48, behind=56, min_frames=16, side=16
            ),
            ClipRecipe(Fraction(1)),
        ),
    )
}


def find_recipe(name: str) -> Recipe:
    """A recipe by name. InputError for TVR, whose I3D weights do not exist for PyTorch, and for unknown names."""
    if name == "tvr":
        raise InputError(
            "--recipe tvr: not offered: its features are of ResNet152 and of an I3D trained on Kinetics-600, whose "
            "weights exist for TensorFlow only; use charades or activitynet"
        )
    if name not in RECIPES:
        raise InputError(f"--recipe {name}: expected {', '.join(RECIPES)}")
    return RECIPES[name]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return str(value) if isinstance(value, Fraction) else value
