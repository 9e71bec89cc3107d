"""Features of video files, made by the encoders of a recipe.

A video is decoded once, in a thread, which also prepares the frames of each stream; the encoders take them in batches.
Memory is bounded however long the video: by 1,704 frames of 224 x 224 bytes for the window of I3D in the recipe of
Charades, less in the others.

Letters: B clips or frames, T frames of a clip, N rows, D width.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from method.runtime.errors import InputError
from method.runtime.files import sha256
from method.video.clip import ClipImageEncoder
from method.video.container import VideoError
from method.video.decode import Sampling, read_frames
from method.video.i3d import FRAMES_PER_ROW, I3D, prepare_frame
from method.video.i3d_weights import read_weights
from method.video.recipes import I3DRecipe, Recipe

STREAMS = ("i3d_feat", "clip_feat")

_CLIP_BATCH = {"cpu": 16, "cuda": 256}  # frames
_I3D_BATCH = {"cpu": 64, "cuda": 512}  # frames of windows that are one row


class _Rows(Protocol):
    """Makes the rows of one stream of one video from its frames."""

    def push(self, frame: Tensor) -> None: ...

    def finish(self) -> list[Tensor]: ...


class VideoEncoders:
    """The encoders of the streams of a recipe; see `open_encoders`."""

    def __init__(
        self,
        recipe: Recipe,
        i3d: I3D | None,
        clip: ClipImageEncoder | None,
        digests: dict[str, str],
        device: torch.device,
    ) -> None:
        self.recipe = recipe
        self._i3d, self._clip, self._digests, self._device = i3d, clip, digests, device

    def description(self) -> dict[str, Any]:
        """As JSON: recipe (name), recipe_digest, and streams: key -> encoder, weights_sha256, rate, width.

        The rate is in rows a second; None for windows of a fixed number of frames at a video's own rate.
        """
        made = {"i3d_feat": ("I3D", self._i3d), "clip_feat": ("CLIP", self._clip)}
        streams = {}
        for key, (name, encoder) in made.items():
            if encoder is not None:
                rate = getattr(self.recipe, key).row_rate
                streams[key] = {
                    "encoder": name,
                    "weights_sha256": self._digests[key],
                    "rate": None if rate is None else float(rate),
                    "width": encoder.width,
                }
        return {"recipe": self.recipe.name, "recipe_digest": self.recipe.digest, "streams": streams}

    def encode(self, path: Path) -> dict[str, npt.NDArray[np.float32]]:
        """Features of a video: stream key -> (N, D). VideoError if it cannot be read or encoded."""
        samplings, rows = self.streams()
        keys = list(rows)
        with closing(read_frames(path, [samplings[key] for key in keys])) as frames:
            for index, frame in frames:
                rows[keys[index]].push(frame)
        features = {key: torch.cat(made.finish()).cpu().numpy() for key, made in rows.items()}
        for key, values_ND in features.items():
            if not np.isfinite(values_ND).all():
                raise VideoError(f"its {key} are not finite")
        return features

    def streams(self) -> tuple[dict[str, Sampling], dict[str, _Rows]]:
        """What is read of a video, and what makes its rows: key -> sampling, and key -> rows of one video."""
        samplings: dict[str, Sampling] = {}
        rows: dict[str, _Rows] = {}
        if self._i3d is not None:
            seen = self.recipe.i3d_feat
            samplings["i3d_feat"] = Sampling(
                seen.rate, lambda image: prepare_frame(image, seen.shorter_side, seen.enlarge_only, seen.side)
            )
            rows["i3d_feat"] = _I3DRows(self._i3d, seen, self._device)
        if self._clip is not None:
            samplings["clip_feat"] = Sampling(self.recipe.clip_feat.rate, self._clip.prepare)
            rows["clip_feat"] = _ClipRows(self._clip)
        return samplings, rows


class _ClipRows:
    def __init__(self, encoder: ClipImageEncoder) -> None:
        self._encoder, self._batch = encoder, _CLIP_BATCH[encoder.device.type]
        self._frames: list[Tensor] = []
        self._rows: list[Tensor] = []

    def push(self, frame: Tensor) -> None:
        self._frames.append(frame)
        if len(self._frames) == self._batch:
            self._encode()

    def finish(self) -> list[Tensor]:
        if self._frames:
            self._encode()
        return self._rows

    def _encode(self) -> None:
        self._rows.append(self._encoder.encode(torch.stack(self._frames)))
        self._frames = []


class _I3DRows:
    def __init__(self, network: I3D, recipe: I3DRecipe, device: torch.device) -> None:
        self._network, self._recipe, self._device = network, recipe, device
        self._batch = max(1, _I3D_BATCH[device.type] // recipe.window)
        self._frames: list[Tensor] = []  # of the current window and its context
        self._context = 0  # how many of them come before the window
        self._clips: list[Tensor] = []  # windows that wait for a batch
        self._rows: list[Tensor] = []

    def push(self, frame: Tensor) -> None:
        recipe = self._recipe
        self._frames.append(frame)
        end = self._context + recipe.window + recipe.behind
        if len(self._frames) > end:  # so this window is not the last
            self._clips.append(torch.stack(self._frames[:end]))
            if len(self._clips) == self._batch:
                self._encode(is_last=False)
            self._frames = self._frames[self._context + recipe.window - recipe.before :]
            self._context = recipe.before

    def finish(self) -> list[Tensor]:
        recipe = self._recipe
        if not self._clips and not self._rows and len(self._frames) < recipe.min_frames:
            self._frames += self._frames[-1:] * (recipe.min_frames - len(self._frames))
        if recipe.behind or len(self._frames) == recipe.window:
            self._clips.append(torch.stack(self._frames))
        if self._clips:
            self._encode(is_last=True)
        return self._rows

    @torch.inference_mode()
    def _encode(self, is_last: bool) -> None:
        clips_BTHWC = torch.stack(self._clips).to(self._device)
        self._clips = []
        rows_BND = self._network(clips_BTHWC.permute(0, 4, 1, 2, 3))[:, self._context // FRAMES_PER_ROW :]
        if not is_last:
            rows_BND = rows_BND[:, : self._recipe.rows_per_window]
        self._rows.append(rows_BND.flatten(0, 1).float())


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
    i3d, clip = None, None
    digests = {}
    if "i3d_feat" in streams:
        path = _given(i3d_weights, "--i3d_weights")
        i3d = I3D(read_weights(path)).to(device, torch.float16 if device.type == "cuda" else torch.float32)
        digests["i3d_feat"] = sha256(path)
    if "clip_feat" in streams:
        clip = ClipImageEncoder(_given(clip_folder, "--clip_encoder"), device)
        digests["clip_feat"] = clip.digest()
    return VideoEncoders(recipe, i3d, clip, digests, device)


def _given(path: Path | None, flag: str) -> Path:
    if path is None:
        raise InputError(f"{flag}: needed for this stream")
    return path
