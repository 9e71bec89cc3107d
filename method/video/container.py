"""Video files by PyAV: the frames of the video stream in order, and one line for each way in which a file is broken.

A file counts as truncated if its packets end clearly before the duration that it declares (Matroska, AVI, MP4 with its
index in front), if it has no index (other MP4), or if its last byte is missing (GIF). Damaged packets are skipped, as
players do, if they are at most 1% of the packets; otherwise the file is refused.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import av.container
import numpy as np
import numpy.typing as npt
from av.stream import Disposition, Stream
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from method.runtime.errors import InputError
from method.runtime.file_kinds import describe

RGB = npt.NDArray[np.uint8]

# Formats that refer to no other file; playlists could read any file or address.
_FORMATS = "mov,mp4,matroska,webm,avi,gif,mpegts,mpeg,flv,asf,ogg"
_MAX_DAMAGED = 0.01
_SLACK, _SLACK_SHARE = Fraction(3, 10), Fraction(1, 100)  # seconds, and share of the declared duration
_GIF_TRAILER = b";"


class VideoError(InputError):
    """A video that cannot be read or encoded. `reason` is one line without the path, which the caller knows."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class VideoFile:
    """An open video file; a context manager.

    Args:
        path: any file; its content decides about the format, not its suffix.
        threads: of the decoder.

    Raises:
        VideoError: the file cannot be read, or has no video stream.
    """

    def __init__(self, path: Path, threads: int) -> None:
        self._path = path
        self.container = _open(path)
        try:
            self.stream = _video_stream(self.container)
            self.stream.thread_type = "AUTO"
            self.stream.codec_context.thread_count = threads
        except BaseException:
            self.container.close()
            raise
        self.time_base: Fraction = self.stream.time_base or Fraction(1, 1000)
        self.frame_seconds = 1 / self.stream.average_rate if self.stream.average_rate else Fraction(0)
        self._reached = Fraction(0)  # end of the last packet, of any stream
        self._longest = self.frame_seconds  # between two frames

    def __enter__(self) -> VideoFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.container.close()

    def frames(self) -> Generator[tuple[Fraction, Fraction, VideoFrame]]:
        """Start in seconds, duration in seconds (0 if unknown) and content of every frame, in the order shown.

        VideoError if the file is truncated, encrypted, damaged or without any frame.
        """
        shown, packets, damaged, last = 0, 0, 0, None
        try:
            for packet in self.container.demux():
                self._note_end(packet)
                if packet.stream.index != self.stream.index:
                    continue
                packets += packet.size > 0  # the last one only flushes the decoder
                if packet.has_sidedata("encryption_info"):
                    raise VideoError("encrypted")
                try:
                    decoded = packet.decode()
                except av.InvalidDataError:
                    damaged += 1
                    continue
                for frame in decoded:
                    assert isinstance(frame, VideoFrame)
                    start = last if frame.pts is None else frame.pts * self.time_base
                    start = (last or Fraction(0)) + self.frame_seconds if start is None else start
                    start = start if last is None else max(start, last)
                    self._longest = max(self._longest, start - (start if last is None else last))
                    last = start
                    shown += 1
                    yield start, (frame.duration or 0) * self.time_base, frame
        except av.FFmpegError as error:
            self._refuse_truncated()
            raise VideoError(f"damaged ({error.strerror})") from error
        self._refuse_truncated()
        if damaged > _MAX_DAMAGED * packets:
            raise VideoError(f"damaged: {damaged} of {packets} packets cannot be decoded")
        if not shown:
            raise VideoError("no frames")

    def seek(self, time: Fraction) -> None:
        """Let the next packets be those from a keyframe at or before a time on, or all of them where that fails."""
        for place in (max(round(time / self.time_base), self.stream.start_time or 0), self.stream.start_time or 0):
            try:
                self.container.seek(place, stream=self.stream, backward=True)
                return
            except av.FFmpegError:
                continue
        raise VideoError("its frames cannot be found by time")

    def seconds(self) -> Fraction:
        """The duration of the video that the file declares."""
        if self.stream.duration:
            return self.stream.duration * self.time_base
        before = self.container.start_time if "matroska" in self.container.format.name else 0  # counted by Matroska
        return Fraction((self.container.duration or 0) - (before or 0), av.time_base)

    def first_frame(self) -> tuple[Fraction, VideoFrame]:
        """The first frame, and when it is shown: times are counted from then on. VideoError as `frames`."""
        with contextlib.closing(self.frames()) as frames:
            start, _, frame = next(frames)
        return start, frame

    def _note_end(self, packet: av.Packet[Stream]) -> None:
        time = packet.pts if packet.pts is not None else packet.dts
        if time is not None and packet.time_base is not None:
            self._reached = max(self._reached, (time + (packet.duration or 0)) * packet.time_base)

    def _refuse_truncated(self) -> None:
        name = self.container.format.name
        if name == "gif":
            if not _last_bytes(self._path, 64).rstrip(b"\0").endswith(_GIF_TRAILER):
                raise VideoError("truncated: the end of the GIF is missing")
            return
        declared = Fraction(self.container.duration or 0, av.time_base)
        if name == "avi":  # of which FFmpeg estimates the duration by the size; the header has the number of frames
            declared = max(declared, self.stream.frames * self.frame_seconds)
        reached = self._reached
        if "matroska" not in name:  # whose duration counts from zero, wherever its first packet is
            reached -= Fraction(self.container.start_time or 0, av.time_base)
        if declared - reached > max(_SLACK, _SLACK_SHARE * declared, 2 * self._longest):
            raise VideoError(f"truncated: it ends at {float(reached):.1f} s of {float(declared):.1f} s")


def to_rgb(frame: VideoFrame, converter: VideoReformatter | None = None) -> RGB:
    """A frame as it is to be shown, (H, W, 3) in RGB: turned and mirrored as its metadata says.

    One converter for all frames of a video saves most of the time where frames are small.
    """
    converted = (converter or VideoReformatter()).reformat(frame, format="rgb24")
    image = cast(RGB, converted.to_ndarray())
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return image
    # x' = a x + c y, y' = b x + d y in 16.16 fixed point, here of a multiple of 90 degrees.
    a, b, _, c, d = np.frombuffer(cast(bytes, matrix), np.int32)[:5].tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        image, a, d = image.swapaxes(0, 1), c, b
    image = image[:, ::-1] if a < 0 else image
    image = image[::-1] if d < 0 else image
    return np.ascontiguousarray(image)


def _last_bytes(path: Path, count: int) -> bytes:
    with path.open("rb") as file:
        file.seek(-min(count, path.stat().st_size), os.SEEK_END)
        return file.read()


def _open(path: Path) -> av.container.InputContainer:
    options = {"protocol_whitelist": "file,pipe", "format_whitelist": _FORMATS}
    try:
        if path.stat().st_size == 0:
            raise VideoError("empty file")
        # Through a link of the system, because FFmpeg's names are UTF-8 and may contain a protocol.
        with path.open("rb") as file:
            container = av.open(f"/dev/fd/{file.fileno()}", "r", metadata_errors="replace", options=options)
    except av.FFmpegError as error:
        with path.open("rb") as file:
            is_mp4 = file.read(8)[4:] == b"ftyp"
        if is_mp4:
            raise VideoError("truncated: an MP4 without its index (moov)") from error
        raise VideoError(f"not a video that can be read: {describe(path) or error.strerror}") from error
    except OSError as error:
        raise VideoError(f"cannot be read ({error.strerror})") from error
    return container


def _video_stream(container: av.container.InputContainer) -> VideoStream:
    if not any(stream.codec_context for stream in container.streams):
        raise VideoError("truncated: its index is incomplete")
    streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not streams:
        raise VideoError("no video stream")
    best = container.streams.best("video")
    stream = best if isinstance(best, VideoStream) and best in streams else streams[0]
    if stream.codec_context is None:
        raise VideoError("its video codec is unknown")
    return stream
