"""Clips: a part of a video as an MP4 file of its own.

Packets are copied where a keyframe stands at most `TOLERANCE` before the part and MP4 can hold them; the clip then
starts at that keyframe. Otherwise frames are encoded again, and the clip starts with the frame that is shown at the
start of the part. Times are seconds from the first frame on, as those of features.
"""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av
from av.audio.stream import AudioStream
from av.stream import Stream

from method.video.clip_tracks import ROUNDING, CopiedTrack, SoundTrack, Track, VideoTrack, packet_time
from method.video.container import VideoError, VideoFile

TOLERANCE = Fraction(1, 2)  # seconds

_INTERLEAVED = 10  # seconds of one stream that may come before the same time of another
_MAX_THREADS = 4
# What MP4 holds and players expect in it. Packets of other containers may lack the timestamps or headers it needs.
_COPIED_VIDEO = {"h264", "hevc", "av1", "vp9"}
_COPIED_SOUND = {"aac", "mp3", "opus", "ac3", "eac3"}
_COPIED_FROM = {"mp4", "matroska"}


def write_clip(video: Path, target: BinaryIO, start: float, end: float, comment: str = "") -> bool:
    """Write a part of a video, with its sound and turned as it is, as MP4; whether its packets were copied.

    Args:
        video: the file.
        target: an empty, seekable file to write to.
        start: of the part, in seconds from the first frame on.
        end: of the part, which may lie after the end of the video.
        comment: kept in the file, see `read_comment`.

    Raises:
        VideoError: the video cannot be read, or ends before the part.
        OSError: `target` cannot be written.
    """
    with VideoFile(video, min(_MAX_THREADS, os.cpu_count() or 1)) as source:
        zero, frame = source.first_frame()
        first, last = zero + Fraction(start), zero + Fraction(end)
        try:
            keyframe = _last_keyframe(source, first, zero)
            is_copied = first - keyframe <= TOLERANCE and _can_copy(source, source.stream, _COPIED_VIDEO)
            begin = keyframe if is_copied else first
            sound = source.container.streams.best("audio")
            with av.open(target, "w", format="mp4") as clip:
                clip.metadata["comment"] = comment
                picture: Track = (
                    CopiedTrack(clip, source.stream, begin, last)
                    if is_copied
                    else VideoTrack(clip, source, frame, begin, last)
                )
                tracks = {source.stream.index: picture}
                if isinstance(sound, AudioStream) and sound.codec_context is not None:
                    copy = _can_copy(source, sound, _COPIED_SOUND)
                    tracks[sound.index] = (CopiedTrack if copy else SoundTrack)(clip, sound, begin, last)
                source.seek(keyframe - 1)  # sound may come before the picture of the same time
                _fill(source, tracks, keyframe, last)
                if not picture.written:
                    raise VideoError(f"no frame at {start:.1f} s")
        except av.FFmpegError as error:
            raise VideoError(f"damaged ({error.strerror})") from error
    return is_copied


def read_comment(path: Path) -> str | None:
    """The comment of a clip; None for any other file."""
    try:
        with path.open("rb") as file, av.open(file, metadata_errors="replace") as clip:
            return clip.metadata.get("comment")
    except (av.FFmpegError, OSError):
        return None


def _last_keyframe(source: VideoFile, time: Fraction, zero: Fraction) -> Fraction:
    """The time of the last keyframe at or before a time; `zero`, that of the first frame, if there is none."""
    source.seek(time)
    found = zero
    for packet in source.container.demux(source.stream):
        shown = packet_time(packet)
        if shown is None:
            continue
        if packet.is_keyframe and shown <= time + ROUNDING:
            found = shown
        if (shown if packet.dts is None else packet.dts * source.time_base) > time + ROUNDING:
            break
    return found


def _can_copy(source: VideoFile, stream: Stream, codecs: set[str]) -> bool:
    formats = set(source.container.format.name.split(","))
    return stream.codec_context.name in codecs and not formats.isdisjoint(_COPIED_FROM)


def _fill(source: VideoFile, tracks: dict[int, Track], keyframe: Fraction, last: Fraction) -> None:
    """Hand packets on to the tracks, those of the picture from the keyframe on, until all tracks are past the end."""
    waiting, has_begun = set(tracks), False
    for packet in source.container.demux([source.container.streams[index] for index in tracks]):
        index, shown = packet.stream.index, packet_time(packet)
        if shown is None:
            continue
        if index == source.stream.index and not has_begun:
            has_begun = packet.is_keyframe and shown >= keyframe - ROUNDING
            if not has_begun:
                continue
        if packet.has_sidedata("encryption_info"):
            raise VideoError("encrypted")
        decoded = shown if packet.dts is None else packet.dts * packet.time_base
        if decoded >= last:
            waiting.discard(index)
        if not waiting or decoded > last + _INTERLEAVED:
            break
        tracks[index].add(packet)
    for track in tracks.values():
        track.finish()
