"""Frames of video files by time: several rates from one decoding, in a thread ahead of the consumer.

Time starts with the first frame. A frame is shown from its timestamp to that of the next, the last one for its own
duration. Sample i of a rate is the frame shown at (i + 0.5) / rate; there is at least one sample, however short the
video. Matroska rounds timestamps to milliseconds, so a frame counts as shown from half a millisecond before its
timestamp: a video then has the same samples in all containers.
"""

from __future__ import annotations

import contextlib
import math
import os
import queue
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import torch
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from torch import Tensor

from method.runtime.errors import InputError
from method.video.container import RGB, VideoError, VideoFile, to_rgb
from method.video.files import SUFFIXES

__all__ = ["SUFFIXES", "Sampling", "VideoError", "find_videos", "read_frames"]

_AHEAD = 64  # samples that are decoded before they are consumed
_MAX_THREADS = 8
_ROUNDING = Fraction(1, 2000)  # seconds


@dataclass(frozen=True)
class Sampling:
    """Which frames are read, and what is made of them by the decoding thread.

    rate: samples a second; None for every frame of the file.
    prepare: RGB frame (H, W, 3) -> what is handed on, which should be small.
    """

    rate: Fraction | None
    prepare: Callable[[RGB], Tensor]


def find_videos(folder: Path) -> dict[str, Path]:
    """Videos below a folder, id -> path, sorted by id; the id is the POSIX path below the folder without the suffix.

    Links are followed, each folder is visited once, and hidden files and folders are left out.

    InputError if the folder does not exist or two files have the same id.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: {'a file' if folder.exists() else 'no such folder'}, expected a folder of videos")
    videos: dict[str, Path] = {}
    visited: set[tuple[int, int]] = set()
    folders: list[Path] = [folder]
    linked: list[Path] = []
    while folders or linked:
        current = folders.pop() if folders else linked.pop(0)
        status = current.stat()
        if (status.st_dev, status.st_ino) in visited:
            continue
        visited.add((status.st_dev, status.st_ino))
        for path in sorted(current.iterdir()):
            if path.name.startswith("."):
                continue
            if path.is_dir():
                (linked if path.is_symlink() else folders).append(path)
            elif path.suffix.lower() in SUFFIXES and path.is_file():
                video_id = path.relative_to(folder).with_suffix("").as_posix()
                if video_id in videos:
                    raise InputError(f"{videos[video_id]} and {path} have the same id, {video_id!r}: rename one")
                videos[video_id] = path
    return dict(sorted(videos.items()))


def read_frames(path: Path, samplings: Sequence[Sampling]) -> Generator[tuple[int, Tensor]]:
    """Decode a video once; yields the index of a sampling and a prepared frame, in the order shown.

    A frame that several samples of a rate show is prepared once and yielded as often. Closing the iterator ends the
    thread. VideoError if the file cannot be decoded to its end.
    """
    samples: queue.Queue[tuple[int, Tensor] | BaseException | None] = queue.Queue(_AHEAD)
    closed = threading.Event()

    def decode() -> None:
        end: BaseException | None = None
        try:
            with contextlib.closing(_sample(path, samplings)) as decoded:
                for sample in decoded:
                    samples.put(sample)
                    if closed.is_set():
                        return
        except BaseException as error:  # raised again by the consumer
            end = error
        samples.put(end)

    thread = threading.Thread(target=decode, name=f"decode {path.name}", daemon=True)
    thread.start()
    try:
        while (sample := samples.get()) is not None:
            if isinstance(sample, BaseException):
                raise sample
            yield sample
    finally:
        closed.set()
        while thread.is_alive():  # it may wait for a place in the queue
            with contextlib.suppress(queue.Empty):
                samples.get(timeout=0.01)
        thread.join()


def _sample(path: Path, samplings: Sequence[Sampling]) -> Generator[tuple[int, Tensor]]:
    threads = min(_MAX_THREADS, torch.get_num_threads(), os.cpu_count() or 1)
    taken, converter = [0] * len(samplings), VideoReformatter()
    with VideoFile(path, threads) as video:
        for frame, until, is_last in _shown_until(video):
            image: RGB | None = None
            for index, (rate, prepare) in enumerate((sampling.rate, sampling.prepare) for sampling in samplings):
                wanted = taken[index] + 1 if rate is None else _samples_before(until, rate)
                count = max(wanted, 1 if is_last else 0) - taken[index]
                if count > 0:
                    image = to_rgb(frame, converter) if image is None else image
                    prepared = prepare(image)
                    yield from [(index, prepared)] * count
                    taken[index] += count


def _shown_until(video: VideoFile) -> Iterator[tuple[VideoFrame, Fraction, bool]]:
    """The frames with the time at which the next one is shown, half a millisecond early, and whether it is the last."""
    first = start = Fraction(0)
    seconds, held = video.frame_seconds, None
    for next_start, duration, frame in video.frames():
        if held is None:
            first = next_start
        else:
            yield held, next_start - first - _ROUNDING, False
        seconds = duration or (video.frame_seconds if held is None else next_start - start)
        start, held = next_start, frame
    if held is not None:
        yield held, start + seconds - first - _ROUNDING, True


def _samples_before(time: Fraction, rate: Fraction) -> int:
    """How many samples of a rate lie before a time: those with (i + 0.5) / rate < time.

    >>> _samples_before(Fraction(1), Fraction(3)), _samples_before(Fraction(1, 2), Fraction(3))
    (3, 1)
    """
    return math.ceil(time * rate - Fraction(1, 2))
