"""Features of video files, made by the encoders of a recipe."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from method.video.recipes import Recipe

STREAMS = ("i3d_feat", "clip_feat")


class VideoEncoders:
    """The encoders of the streams of a recipe."""

    recipe: Recipe

    def description(self) -> dict[str, Any]:
        """As JSON: recipe (name), recipe_digest, and streams: key -> encoder, weights_sha256, rate, width.

        The rate is in rows a second; None for windows of a fixed number of frames at a video's own rate.
        """
        raise NotImplementedError

    def encode(self, path: Path) -> dict[str, npt.NDArray[np.float32]]:
        """Features of a video: stream key -> (rows, width). VideoError if it cannot be read or encoded."""
        raise NotImplementedError


def open_encoders(
    recipe: Recipe,
    *,
    clip_folder: Path | None,
    i3d_weights: Path | None,
    streams: Collection[str] = STREAMS,
    device: torch.device,
) -> VideoEncoders:
    """Load the encoders of these streams; the folder or file of a stream that is left out is not read.

    InputError for a missing or corrupt folder or file.
    """
    raise NotImplementedError
