"""Stills: one frame of a video as a small picture."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av
from av.video.frame import VideoFrame
from PIL import Image

from method.video.clip_tracks import ROUNDING
from method.video.container import VideoError, VideoFile, to_rgb

SIZE = (320, 180)  # at most, in pixels

_MAX_FRAMES = 1000  # decoded from the keyframe on; the last of them is taken if none is at the time


def write_still(video: Path, target: BinaryIO, at: float, duration: float | None) -> None:
    """Write the frame that is shown at a time, as JPEG.

    Args:
        video: the file.
        target: a file to write to.
        at: the time, as a fraction 0 to 1 of the video.
        duration: of the video, in seconds; None for what the file says.

    Raises:
        VideoError: the video cannot be read.
        OSError: `target` cannot be written.
    """
    with VideoFile(video, threads=1) as source:
        try:
            seconds = source.seconds() if duration is None else Fraction(duration)
            frame = _frame_at(source, source.first_frame()[0] + Fraction(at) * seconds)
        except av.FFmpegError as error:
            raise VideoError(f"damaged ({error.strerror})") from error
        image = Image.fromarray(to_rgb(frame))
    image.thumbnail(SIZE)
    image.save(target, "JPEG", quality=80)


def _frame_at(source: VideoFile, time: Fraction) -> VideoFrame:
    source.seek(time)
    found, decoded, has_begun = None, 0, False
    for packet in source.container.demux(source.stream):
        has_begun = has_begun or packet.is_keyframe
        if not has_begun:
            continue
        try:
            frames = packet.decode()
        except av.InvalidDataError:
            continue
        for frame in frames:
            ticks = frame.dts if frame.pts is None else frame.pts
            if found is not None and ((ticks or 0) * source.time_base > time + ROUNDING or decoded > _MAX_FRAMES):
                return found
            found, decoded = frame, decoded + 1
    if found is None:
        raise VideoError("no frames")
    return found
