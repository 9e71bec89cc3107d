"""The streams of a clip: packets that are copied, frames and sound that are encoded again."""

from __future__ import annotations

from fractions import Fraction
from typing import Any, Protocol

import av
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.stream import Stream
from av.video.frame import PictureType, VideoFrame
from av.video.stream import VideoStream

from method.video.container import VideoError, VideoFile, to_rgb

ROUNDING = Fraction(1, 1000)  # of timestamps by containers, in seconds

# The first that this build of FFmpeg has.
_ENCODERS = {"libx264": {"crf": "20", "preset": "veryfast"}, "libopenh264": {"b": "4000000"}, "mpeg4": {"b": "4000000"}}
_TICK = Fraction(1, 60000)  # seconds; MPEG-4 counts to 65535
_LAST_FRAME = Fraction(1)  # seconds for which the last frame of a video is shown, at most
_SOUND_RATES = (48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000)  # of AAC in every player
_SOUND_LAYOUTS = ("mono", "stereo")


class Track(Protocol):
    """A stream of a clip; `written` once it has content."""

    written: bool

    def add(self, packet: av.Packet[Any]) -> None:
        """Take the next packet of the source's stream."""

    def finish(self) -> None:
        """Write what is left."""


class CopiedTrack:
    """A stream whose packets are copied, except those shown before the clip begins or after its end.

    A packet shown after the end is kept if one that is decoded later is shown before.

    Args:
        clip: to which the stream is added.
        source: the stream.
        begin: time in the source at which the clip begins, in seconds.
        end: time in the source at which it ends.
    """

    def __init__(self, clip: OutputContainer, source: Stream, begin: Fraction, end: Fraction) -> None:
        assert source.time_base is not None
        self._clip, self._stream = clip, clip.add_stream_from_template(source)
        self._begin, self._end = round(begin / source.time_base), end / source.time_base
        self._held: list[av.Packet[Any]] = []
        self.written = False

    def add(self, packet: av.Packet[Any]) -> None:
        """Take the next packet."""
        shown = packet.dts if packet.pts is None else packet.pts
        assert shown is not None
        if shown >= self._begin:
            packet.pts = shown
            self._held.append(packet)
            if shown < self._end and packet.dts is not None:
                self._write()

    def finish(self) -> None:
        """Write what is left."""
        while self._held and _ticks(self._held[-1].pts) >= self._end:
            self._held.pop()
        self._write()

    def _write(self) -> None:
        after: int | None = None
        for packet in reversed(self._held):  # Matroska leaves out the decoding times of the first
            if packet.dts is None:
                packet.dts = _ticks(packet.pts) if after is None else min(_ticks(packet.pts), after - 1)
            after = packet.dts
        for packet in self._held:
            packet.pts, packet.dts = _ticks(packet.pts) - self._begin, _ticks(packet.dts) - self._begin
            packet.stream = self._stream
            self._clip.mux(packet)
            self.written = True
        self._held.clear()


class VideoTrack:
    """Frames, encoded again and upright: from the one that is shown when the clip begins to the last before its end.

    Args:
        clip: to which the stream is added.
        source: the video.
        like: a frame of it, for the size.
        begin: time in the source at which the clip begins, in seconds.
        end: time in the source at which it ends.
    """

    def __init__(
        self, clip: OutputContainer, source: VideoFile, like: VideoFrame, begin: Fraction, end: Fraction
    ) -> None:
        self._clip, self._source, self._begin, self._end = clip, source, begin, end
        upright = _upright(like)
        self._stream = _add_stream(clip, source.stream.average_rate, upright.width, upright.height)
        self._first: VideoFrame | None = None  # shown when the clip begins, as far as is known
        self._time = -1  # of the last frame, in ticks
        self._shown = Fraction(0)
        self.written = False

    def add(self, packet: av.Packet[Any]) -> None:
        """Take the next packet; one that is damaged is skipped."""
        try:
            frames = self._source.stream.decode(packet)
        except av.InvalidDataError:
            return
        for frame in frames:
            self._take(frame)

    def finish(self) -> None:
        """Write what is left."""
        for frame in self._source.stream.decode(None):
            self._take(frame)
        if self._first is not None and self._begin - self._shown <= _LAST_FRAME:
            self._encode(self._first, self._begin)
        self._clip.mux(self._stream.encode(None))

    def _take(self, frame: VideoFrame) -> None:
        ticks = frame.dts if frame.pts is None else frame.pts
        self._shown = self._shown + self._source.frame_seconds if ticks is None else ticks * self._source.time_base
        if self._shown <= self._begin + ROUNDING:
            self._first = frame
            return
        if self._first is not None:
            self._encode(self._first, self._begin)
            self._first = None
        if self._shown < self._end:
            self._encode(frame, self._shown)

    def _encode(self, frame: VideoFrame, time: Fraction) -> None:
        frame = _upright(frame).reformat(self._stream.width, self._stream.height, "yuv420p")
        self._time = max(round((time - self._begin) / _TICK), self._time + 1)
        frame.pts, frame.time_base, frame.pict_type = self._time, _TICK, PictureType.NONE
        self._clip.mux(self._stream.encode(frame))
        self.written = True


class SoundTrack:
    """Sound, encoded again as AAC and cut exactly."""

    def __init__(self, clip: OutputContainer, source: AudioStream, begin: Fraction, end: Fraction) -> None:
        self._clip, self._source, self._begin, self._end = clip, source, begin, end
        rate = next((own for own in _SOUND_RATES if own <= source.rate), _SOUND_RATES[-1])
        layout = _SOUND_LAYOUTS[source.channels > 1]
        self._stream = clip.add_stream("aac", rate=rate)
        assert isinstance(self._stream, AudioStream)
        self._stream.layout = layout
        self._resampler = av.AudioResampler("fltp", layout, rate)
        self.written = False

    def add(self, packet: av.Packet[Any]) -> None:
        """Take the next packet; one that is damaged is skipped."""
        try:
            frames = self._source.decode(packet)
        except av.InvalidDataError:
            return
        for frame in frames:
            for own in self._resampler.resample(frame):
                self._take(own)

    def finish(self) -> None:
        """Write what is left."""
        for own in self._resampler.resample(None):
            self._take(own)
        if self.written:
            self._clip.mux(self._stream.encode(None))

    def _take(self, frame: AudioFrame) -> None:
        rate = frame.sample_rate
        at = round(_ticks(frame.pts) * frame.time_base * rate) if frame.time_base else 0
        begin, end = (round(time * rate) for time in (self._begin, self._end))
        samples = frame.to_ndarray()[:, max(begin - at, 0) : max(end - at, 0)]
        if samples.shape[1]:
            cut = AudioFrame.from_ndarray(samples.copy(), frame.format.name, frame.layout.name)
            cut.sample_rate, cut.time_base, cut.pts = rate, Fraction(1, rate), max(at - begin, 0)
            self._clip.mux(self._stream.encode(cut))
            self.written = True


def packet_time(packet: av.Packet[Any]) -> Fraction | None:
    """When a packet is shown, in seconds; None for one without content or time."""
    ticks = packet.dts if packet.pts is None else packet.pts
    return None if ticks is None or packet.size == 0 else ticks * packet.time_base


def _ticks(value: int | None) -> int:
    assert value is not None
    return value


def _upright(frame: VideoFrame) -> VideoFrame:
    return VideoFrame.from_ndarray(to_rgb(frame), format="rgb24") if "DISPLAYMATRIX" in frame.side_data else frame


def _add_stream(clip: OutputContainer, rate: Fraction | None, width: int, height: int) -> VideoStream:
    encoder = next((name for name in _ENCODERS if _has_encoder(name)), None)
    if encoder is None:
        raise VideoError(f"cannot be encoded again: the package av has none of {', '.join(_ENCODERS)}")
    stream = clip.add_stream(encoder, rate=rate or 25, options=_ENCODERS[encoder])
    assert isinstance(stream, VideoStream)
    stream.width, stream.height = (max(2, side // 2 * 2) for side in (width, height))  # chroma is subsampled
    stream.pix_fmt = "yuv420p"
    stream.codec_context.time_base = stream.time_base = _TICK
    return stream


def _has_encoder(name: str) -> bool:
    try:
        av.Codec(name, "w")
    except av.FFmpegError:  # known to FFmpeg, but not to this build
        return False
    except ValueError:
        return False
    return True
