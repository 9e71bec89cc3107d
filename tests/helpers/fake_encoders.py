"""Video encoders that take the features from the bytes of a file, in the place of networks.

`main LOG SECONDS VIDEO_FOLDER ...` runs utils/extract_features.py with them.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest

from method.video import encode
from method.video.decode import VideoError
from method.video.encode import VideoEncoders
from method.video.recipes import Recipe
from utils import extract_features

WIDTHS = {"i3d_feat": 10, "clip_feat": 6}
WEIGHTS = {"i3d_feat": "13d", "clip_feat": "c11b"}  # first digits of their SHA-256
RATE = 2.0


class FakeEncoders:
    """Half a second of video for each byte of a file. A file that begins with `bad` cannot be encoded.

    log: gets the name of each encoded file. seconds: that encoding takes.
    """

    def __init__(
        self, recipe: str, streams: Collection[str], weights: Mapping[str, str], log: Path, seconds: float
    ) -> None:
        self._recipe, self._streams, self._weights = recipe, streams, weights
        self._log, self._seconds = log, seconds

    def description(self) -> dict[str, Any]:
        digests = {key: weights.ljust(64, "0") for key, weights in self._weights.items()}
        streams = {
            key: {"encoder": "fake", "weights_sha256": digests[key], "rate": RATE, "width": WIDTHS[key]}
            for key in self._streams
        }
        return {"recipe": self._recipe, "recipe_digest": "0", "streams": streams}

    def encode(self, path: Path) -> dict[str, npt.NDArray[np.float32]]:
        content = path.read_bytes()
        if content.startswith(b"bad"):
            raise VideoError("truncated at 2 s")
        with self._log.open("a") as log:  # one write, which processes can share
            log.write(f"{path.name}\n")
        time.sleep(self._seconds)
        rng = np.random.default_rng(list(content))
        return {key: rng.standard_normal((len(content), WIDTHS[key]), dtype=np.float32) for key in self._streams}


def install(patch: pytest.MonkeyPatch, log: Path, weights: Mapping[str, str] = WEIGHTS, seconds: float = 0.0) -> None:
    """Let the program open these encoders."""

    def open_encoders(recipe: Recipe, *, streams: Collection[str], **_: object) -> VideoEncoders:
        return cast(VideoEncoders, FakeEncoders(recipe.name, streams, weights, log, seconds))

    patch.setattr(encode, "open_encoders", open_encoders)
    patch.setattr(extract_features, "_i3d_weights", lambda given, recipe: None)


def main() -> None:
    """Run the program with these encoders."""
    log, seconds, *arguments = sys.argv[1:]
    install(pytest.MonkeyPatch(), Path(log), seconds=float(seconds))
    extract_features.main(arguments)
