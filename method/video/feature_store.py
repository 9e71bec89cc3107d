"""The features of a folder of videos: one HDF5 file in the published layout, and beside it those it does not hold yet.

A video's features are first a file of their own in `<feature file>.parts/`, written atomically. `merge` then writes a
new feature file of the old one and the parts, and replaces the old one. No HDF5 file is changed in place: one to which
a killed process was writing is unreadable. So a kill loses the video under way and nothing else.

Several processes can share a store: each video has a lock, and merging another.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from method.data.features import open_hdf5
from method.data.hdf5_writer import atomic_hdf5
from method.data.linked_files import state_of
from method.data.provenance import DURATION, FEATURES, SOURCE, Source, read_description, read_sources
from method.runtime.errors import InputError
from method.runtime.files import atomic_writer, digest_of, read_json, remove_partial_files, write_json
from method.runtime.locks import exclusive_lock
from method.runtime.progress import poll, progress_bar

log = logging.getLogger(__name__)

Streams = Mapping[str, npt.NDArray[np.float32]]
_ABOUT = "about"  # beside the streams in a part
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class VideoFeatures:
    """The features of one video: stream -> (rows, width), the file they were made from, and its duration in seconds."""

    streams: Streams
    source: Source
    duration: float | None


class FeatureStore:
    """The features of videos, all made in the same way.

    Args:
        path: of the feature file.
        description: how features are made, see `VideoEncoders.description`.

    Raises:
        InputError: for features there that were made in another way, or do not say how.
    """

    def __init__(self, path: Path, description: Mapping[str, Any]) -> None:
        self.path = path
        self.parts = path.with_name(f"{path.name}.parts")
        self._description = json.loads(json.dumps(description))  # as it is read from a file
        self._started = time.time()
        self._sources: dict[str, Source] = {}
        self._ids: dict[tuple[int, str], str] = {}  # by size and SHA-256 of the video
        self._state: dict[str, int] | None = None  # of the feature file when its sources were read
        self.check_description()

    @property
    def streams(self) -> Mapping[str, Mapping[str, Any]]:
        """How each stream is made."""
        streams: Mapping[str, Mapping[str, Any]] = self._description["streams"]
        return streams

    def check_description(self) -> None:
        """InputError for features that were made in another way, which must not be mixed with these."""
        held, where = None, self.path
        if self.path.exists():
            held = read_description(self.path)
            if held is None:
                raise InputError(
                    f"{self.path}: does not say how its features were made, expected none or those of this program; "
                    "choose another --dataset_name"
                )
        else:
            abouts = (_read_about(part) for part in self.parts.glob("*.npz"))
            held, where = next((about["description"] for about in abouts if about), None), self.parts
        if held not in (None, self._description):
            raise InputError(
                f"{where}: holds features of {_in_words(held)}, and these would be of {_in_words(self._description)}; "
                "features are never mixed: choose another --dataset_name, or delete it"
            )

    def sources(self) -> Mapping[str, Source]:
        """The videos of the feature file, by id."""
        state = state_of(self.path) if self.path.exists() else None
        if state != self._state:
            self._sources = read_sources(self.path, self._description["streams"]) if state else {}
            self._ids = {(source.size, source.sha256): video_id for video_id, source in self._sources.items()}
            self._state = state
        return self._sources

    def has(self, video_id: str, video: Path) -> bool:
        """Whether there are features of this file as it is now."""
        part = self._read_part(video_id)  # first: a merge removes parts after it has replaced the feature file
        source = part.source if part else self.sources().get(video_id)
        return source is not None and source.is_file(video)

    @contextlib.contextmanager
    def lock(self, video_id: str, wait: bool) -> Iterator[bool]:
        """Hold the lock of a video; False if another process holds it, unless `wait`."""
        with contextlib.ExitStack() as stack:
            try:
                self._enter(stack, self._file(video_id, "lock"), f"another process is extracting {video_id}", wait)
            except InputError:
                yield False
                return
            yield True

    def add(self, video_id: str, features: VideoFeatures) -> None:
        """Store the features of a video, whole or not at all. OSError for a full disk."""
        about = {"description": self._description, "source": asdict(features.source), "duration": features.duration}
        arrays: dict[str, Any] = {_ABOUT: np.array(json.dumps(about)), **features.streams}
        with atomic_writer(self._file(video_id, "npz")) as file:
            np.savez(file, **arrays)
        self._file(video_id, "failed").unlink(missing_ok=True)

    def find_content(self, size: int, sha256: str) -> VideoFeatures | None:
        """The features of a video of the feature file with this content, whatever its name or time."""
        self.sources()
        video_id = self._ids.get((size, sha256))
        if video_id is None:
            return None
        with contextlib.closing(open_hdf5(self.path)) as file:
            return _from_group(file[video_id]) if video_id in file else None

    def add_failure(self, video_id: str, reason: str) -> None:
        """Tell the other processes that a video cannot be encoded."""
        write_json(self._file(video_id, "failed"), {"id": video_id, "reason": reason, "time": time.time()})

    def failure(self, video_id: str) -> str | None:
        """Why another process could not encode a video since this one started; earlier failures are tried again."""
        path = self._file(video_id, "failed")
        if not path.exists():
            return None
        failure = read_json(path)
        return failure["reason"] if failure["time"] >= self._started else None

    def merge(self, videos: Mapping[str, Path]) -> None:
        """Replace the feature file by one of exactly these videos, as far as there are features of them.

        OSError for a full disk, and InputError as `check_description`; then all stays as it was.
        """
        with contextlib.ExitStack() as stack:
            self._enter(stack, self.parts / ".lock", f"waiting for another process that writes {self.path}", True)
            self.check_description()
            remove_partial_files(self.path.parent, self.path.name)
            kept = [video_id for video_id, video in videos.items() if video.exists() and self.has(video_id, video)]
            parts = [part for video_id in kept if (part := self._file(video_id, "npz")).exists()]
            if parts or set(kept) != set(self.sources()):
                self._write(kept)
            for part in parts:
                part.unlink()
            self._remove_stale(videos)

    def _write(self, video_ids: list[str]) -> None:
        old = open_hdf5(self.path) if self.path.exists() else None
        with contextlib.closing(old) if old else contextlib.nullcontext(), atomic_hdf5(self.path) as new:
            new.attrs[FEATURES] = json.dumps(self._description)
            for video_id in progress_bar(video_ids, f"writing {self.path.name}", "video"):
                features = self._read_part(video_id)
                if features is None:
                    assert old is not None
                    features = _from_group(old[video_id])
                group = new.require_group(video_id)
                for key, rows in features.streams.items():
                    group[key] = rows
                group.attrs[SOURCE] = json.dumps(asdict(features.source))
                if features.duration is not None:
                    group.attrs[DURATION] = features.duration

    def _read_part(self, video_id: str) -> VideoFeatures | None:
        """The part of a video; None if there is none, or it is damaged or was made in another way."""
        path = self._file(video_id, "npz")
        with contextlib.suppress(*_UNREADABLE), np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}  # compares every array with its checksum
            about = json.loads(str(arrays.pop(_ABOUT)))
            if about["description"] == self._description:
                return VideoFeatures(arrays, Source(**about["source"]), about["duration"])
        return None

    def _remove_stale(self, videos: Iterable[str]) -> None:
        """Remove what earlier runs left, and the folder of the parts if nothing else is in it."""
        for lock in self.parts.glob("*.lock"):
            with contextlib.suppress(InputError), exclusive_lock(lock, "in use", wait=False):
                remove_partial_files(self.parts, lock.stem)
                lock.unlink()
        stems = {self._file(video_id, "npz").stem for video_id in videos}
        for path in [*self.parts.glob("*.npz"), *self.parts.glob("*.failed")]:
            if path.stem not in stems or (path.suffix == ".failed" and path.stat().st_mtime < self._started):
                path.unlink(missing_ok=True)
        if [path.name for path in self.parts.iterdir()] == [".lock"]:
            (self.parts / ".lock").unlink()
            with contextlib.suppress(OSError):  # another process has just used it
                self.parts.rmdir()

    def _file(self, video_id: str, kind: str) -> Path:
        return self.parts / f"{digest_of(video_id)[:32]}.{kind}"

    def _enter(self, stack: contextlib.ExitStack, path: Path, busy: str, wait: bool) -> None:
        while True:
            self.parts.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # the folder was removed between the two calls
                stack.enter_context(exclusive_lock(path, busy, wait=wait, poll=poll))
                stack.callback(path.unlink, missing_ok=True)  # before it is released, so that nobody else holds it
                return


def _read_about(path: Path) -> dict[str, Any] | None:
    with contextlib.suppress(*_UNREADABLE), np.load(path, allow_pickle=False) as stored:
        about = json.loads(str(stored[_ABOUT]))
        return about if isinstance(about, dict) else None
    return None


def _from_group(group: h5py.Group) -> VideoFeatures:
    streams = {key: array[()] for key, array in group.items() if isinstance(array, h5py.Dataset)}
    return VideoFeatures(streams, Source(**json.loads(group.attrs[SOURCE])), group.attrs.get(DURATION))


def _in_words(description: Mapping[str, Any]) -> str:
    streams = [
        f"{key} by {made['encoder']}, SHA-256 {str(made['weights_sha256'])[:12]}"
        for key, made in sorted(description["streams"].items())
    ]
    return f"recipe {description['recipe']} ({'; '.join(streams)})"
