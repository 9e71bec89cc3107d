"""Small video files whose every frame shows its number, as eight black or white stripes."""

import itertools
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Image = npt.NDArray[np.uint8]
_TICK = Fraction(1, 1000)


def numbered_image(number: int, height: int = 48, width: int = 64) -> Image:
    """The bits of a number from left to right, the highest first, in the lower half below a grey upper half."""
    bits = [number >> (7 - i) & 1 for i in range(8)]
    stripes = np.repeat(np.array(bits, np.uint8) * 255, -(-width // 8))[:width]
    image = np.empty((height, width, 3), np.uint8)
    image[: height // 2] = 128
    image[height // 2 :] = stripes[None, :, None]
    return image


def read_number(image: Image) -> Tensor:
    """The number that an image shows; -1 if it is not upright."""
    height, width = image.shape[:2]
    columns = [int((i + 0.5) * -(-width // 8)) for i in range(8)]
    top, bottom = (image[height * part // 4, [min(c, width - 1) for c in columns], 1] for part in (1, 3))
    upright = bool((abs(top.astype(int) - 128) < 40).all())
    return torch.tensor(int("".join(str(int(value > 127)) for value in bottom), 2) if upright else -1)


def write_video(
    path: Path,
    times: Sequence[int],
    codec: str = "libx264",
    pixels: str = "yuv420p",
    size: tuple[int, int] = (48, 64),
    options: dict[str, str] | None = None,
    container: dict[str, str] | None = None,
    turned: int = 0,
    audio_seconds: float = 0.0,
    audio_codec: str = "pcm_s16le",
    **more: Any,
) -> Path:
    """Write frames 0, 1, ... that are shown from these milliseconds on; `turned` by quarters counterclockwise.

    The sound is silent in its first half and loud in its second.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    steps = [after - before for before, after in itertools.pairwise(times)] or [100]
    with av.open(str(path), "w", options=container or {}, **more) as file:
        stream = file.add_stream(codec, rate=Fraction(1000, min(steps)), options=options or {})
        height, width = size[::-1] if turned % 2 else size
        stream.height, stream.width, stream.pix_fmt = height, width, pixels
        stream.codec_context.time_base = stream.time_base = _TICK
        sound = file.add_stream(audio_codec, rate=8000, layout="mono") if audio_seconds else None
        for number, time in enumerate(times):
            image = np.ascontiguousarray(np.rot90(numbered_image(number, *size), turned))
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = time, _TICK
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
        if sound is not None:
            half = int(4000 * audio_seconds)
            samples = np.resize(np.array([8000, -8000], np.int16), (1, 2 * half))
            samples[:, :half] = 0
            for at in range(0, 2 * half, 1024):
                part = av.AudioFrame.from_ndarray(samples[:, at : at + 1024].copy(), format="s16", layout="mono")
                part.sample_rate, part.pts, part.time_base = 8000, at, Fraction(1, 8000)
                file.mux(sound.encode(part))
            file.mux(sound.encode())
    return path


def set_matrix(path: Path, matrix: tuple[int, int, int, int]) -> None:
    """Write (a, b, c, d) of the display matrix, x' = a x + c y and y' = b x + d y, into an MP4 file."""
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 44  # after version, times, ids, layer and volume
    a, b, c, d = (value << 16 for value in matrix)
    values = (a, b, 0, c, d, 0, 0, 0, 1 << 30)
    data[start : start + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in values)
    path.write_bytes(data)
