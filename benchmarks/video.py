"""Features of a minute of video beside decoding alone and the networks alone, as ratios in one run.

    python benchmarks/video.py
    python benchmarks/video.py --recipe activitynet --seconds 10 --streams clip_feat

The video is made here: noise that moves, at 30 frames a second. The networks have the published sizes and random
weights.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import method  # noqa: F401 (sets OpenMP variables before torch is imported)

import av
import numpy as np
import torch
from torch import Tensor

from benchmarks.measure import DEVICE, alternate, compare, machine, peak_memory_mb, reset_peak_memory
from method.ops.precision import enable_fast_matmul
from method.runtime.errors import run_command
from method.video.decode import read_frames
from method.video.encode import STREAMS, VideoEncoders, open_encoders
from method.video.recipes import RECIPES

_RATE = 30


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the times of the whole, of decoding and of the networks."""
    given = _read_arguments(arguments)
    enable_fast_matmul(DEVICE)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        video = make_video(folder / "a.mp4", given.seconds, given.height)
        i3d, clip = make_encoders(folder)
        encoders = open_encoders(
            RECIPES[given.recipe], clip_folder=clip, i3d_weights=i3d, streams=given.streams, device=DEVICE
        )
        print(f"{machine()}; {given.recipe}, {', '.join(given.streams)}, {given.seconds} s of {given.height} lines")
        print(compare(alternate(programs(encoders, video), given.rounds, time.perf_counter), "features"))
        reset_peak_memory()
        encoders.encode(video)
        print(f"peak memory {peak_memory_mb():.0f} MiB")


def programs(encoders: VideoEncoders, video: Path) -> dict[str, Callable[[], object]]:
    """The whole, decoding and preparing the frames alone, and the networks on frames that are ready."""
    samplings = list(encoders.streams()[0].values())
    frames: list[tuple[int, Tensor]] = list(read_frames(video, samplings))

    def networks() -> None:
        rows = list(encoders.streams()[1].values())
        for index, frame in frames:
            rows[index].push(frame)
        for made in rows:
            torch.cat(made.finish()).cpu()

    return {
        "features": lambda: encoders.encode(video),
        "decoding alone": lambda: sum(1 for _ in read_frames(video, samplings)),
        "networks alone": networks,
    }


def make_video(path: Path, seconds: int, height: int) -> Path:
    """Smooth noise that moves across the picture, 16:9."""
    random = np.random.default_rng(0)
    width = height * 16 // 9 // 2 * 2
    tile = np.kron(random.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8), np.ones((8, 8, 1)))
    tile = tile[:height, :width].astype(np.uint8)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=_RATE, options={"preset": "veryfast"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for number in range(seconds * _RATE):
            frame = av.VideoFrame.from_ndarray(np.roll(tile, 3 * number, 1), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, _RATE)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def make_encoders(folder: Path) -> tuple[Path, Path]:
    """A weight file of I3D and the folder of a CLIP ViT-B/32, with random weights."""
    from transformers import CLIPConfig, CLIPModel

    from tests.helpers.small_i3d import i3d_weights

    torch.save(i3d_weights(), folder / "i3d.pt")
    CLIPModel(CLIPConfig()).save_pretrained(folder / "clip")
    return folder / "i3d.pt", folder / "clip"


def _read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time the features of a video.")
    parser.add_argument("--recipe", choices=sorted(RECIPES), default="charades")
    parser.add_argument("--streams", nargs="+", choices=STREAMS, default=list(STREAMS))
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--height", type=int, default=480, help="lines of the picture")
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run_command(main)
