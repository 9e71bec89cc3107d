"""A segment of an index: the frame embeddings of some videos, in a file that is never changed.

    keys of each branch: `FrameEmbeddings.values`, from a multiple of 64 bytes on
    JSON at the end: id, features and seconds of each video; type, place, checksum and lengths of each branch's keys

Reading maps the file into memory. Its size is checked first, since reading past the end of a mapped file kills the
process, and its JSON by a digest. The checksums of keys are verified before they are first used, not at opening.

Letters: N keys of all videos, D width, W 8-byte words.
"""

from __future__ import annotations

import os
import secrets
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from method.data.cache.rows_file import read_exactly
from method.evaluation.corpus import Corpus
from method.evaluation.frame_embeddings import FrameEmbeddings
from method.runtime.errors import InputError
from method.runtime.files import atomic_writer
from method.runtime.json_trailer import read_trailer, trailer_of

PATTERN = "segment-*.keys"
VIDEOS_PER_SEGMENT = 4096  # about 1 GB, which is held in memory until it is written
_MAGIC = b"A3PSEGM\x01"
_ALIGNMENT = 64  # of the memory that PyTorch allocates; products of unaligned rows are rounded differently
_WORDS_PER_SUM = 512  # a page
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class UnusableIndex(InputError):
    """An index that is damaged or was made from something else: the reason, to which the message adds the remedy."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"{reason}; rebuild it with --rebuild")


@dataclass(frozen=True)
class EncodedVideos:
    """Videos ready to be stored.

    corpus: their embeddings, on the CPU. digests: of their features. durations: in seconds, None where unknown.
    """

    corpus: Corpus
    digests: Sequence[str]
    durations: Sequence[float | None]


class Segment:
    """A segment that is open for reading; the file may be deleted meanwhile.

    corpus: its videos. digests, durations: of the videos, as in `EncodedVideos`. size: of the file, in bytes.

    Raises:
        FileNotFoundError: if there is no such file.
        UnusableIndex: for a file that is truncated, not a segment or damaged in its JSON.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe in its place would be waited for
        try:
            header, start = read_trailer(descriptor, _MAGIC)
            content = _map(descriptor, start)
            self.size = os.fstat(descriptor).st_size
        except (LookupError, ValueError, OSError) as error:
            reason = {LookupError: "truncated, or not a segment of an index", ValueError: "its header is corrupt"}
            why = reason.get(type(error), f"cannot be read ({error})")
            raise UnusableIndex(f"{path}: {why}") from error
        finally:
            os.close(descriptor)
        self.digests: list[str] = header["digests"]
        self.durations: list[float | None] = header["durations"]
        self._content, self._branches = content, header["branches"]
        self._is_verified = False
        frames = {name: self._frames(place) for name, place in self._branches.items()}
        self.corpus = Corpus(header["video_ids"], frames)

    @property
    def video_ids(self) -> list[str]:
        """All its videos, those that have been removed from the index included."""
        return self.corpus.video_ids

    def _bytes(self, place: Mapping[str, Any]) -> Tensor:
        """The bytes of a branch's keys."""
        size = sum(place["lengths"]) * place["width"] * _DTYPES[place["dtype"]].itemsize
        if place["start"] + size > len(self._content):
            raise UnusableIndex(f"{self.path}: {len(self._content)} bytes of keys, expected more")
        return self._content[place["start"] : place["start"] + size]

    def _frames(self, place: Mapping[str, Any]) -> FrameEmbeddings:
        keys = self._bytes(place).view(_DTYPES[place["dtype"]])
        return FrameEmbeddings(keys.view(-1, place["width"]), tuple(place["lengths"]))

    def verify(self) -> None:
        """Compare the keys with their checksums, once. UnusableIndex if they differ."""
        if self._is_verified:
            return
        for name, place in self._branches.items():
            if checksum(self._bytes(place)) != place["checksum"]:
                raise UnusableIndex(f"{self.path}: corrupt, wrong checksum of the {name} embeddings")
        self._is_verified = True

    def bad_branch(self) -> str | None:
        """A branch whose keys are not all finite, if there is one."""
        return next((name for name, own in self.corpus.frames.items() if not _is_finite(own.values)), None)


def write_segment(folder: Path, videos: EncodedVideos) -> tuple[str, int]:
    """Write a segment of a new name; returns the name and the size in bytes.

    InputError for embeddings that are not finite, OSError for a full disk, both of which leave no file.
    """
    branches: dict[str, Any] = {}
    path = folder / PATTERN.replace("*", secrets.token_hex(8))
    with atomic_writer(path) as file:
        for name, frames in videos.corpus.frames.items():
            if not _is_finite(frames.values):
                raise InputError(f"the {name} frame embeddings are not all finite: the weights or features are broken")
            keys = frames.values.contiguous().view(torch.uint8).flatten()
            file.write(bytes(-file.tell() % _ALIGNMENT))
            branches[name] = {
                "dtype": str(frames.values.dtype).removeprefix("torch."),
                "width": frames.values.shape[1],
                "start": file.tell(),
                "checksum": checksum(keys),
                "lengths": list(frames.lengths),
            }
            file.write(keys.numpy().data)
        header = {
            "video_ids": videos.corpus.video_ids,
            "digests": list(videos.digests),
            "durations": list(videos.durations),
            "branches": branches,
        }
        file.write(trailer_of(_MAGIC, header))
        size = file.tell()
    return path.name, size


def checksum(bytes_N: Tensor) -> int:
    """CRC-32 of the sum of each page's 8-byte words: any changed word changes it, at the speed of the memory."""
    words_W = bytes_N[: len(bytes_N) // 8 * 8].view(torch.int64)
    pages = words_W[: len(words_W) // _WORDS_PER_SUM * _WORDS_PER_SUM].view(-1, _WORDS_PER_SUM)
    rest = bytes_N[pages.numel() * 8 :]
    return zlib.crc32(rest.numpy().tobytes(), zlib.crc32(pages.sum(1).numpy().tobytes()))


def _is_finite(keys_ND: Tensor) -> bool:
    return all(bool(torch.isfinite(part).all()) for part in keys_ND.split(1 << 16))


def _map(descriptor: int, size: int) -> Tensor:
    """The first bytes of a file, mapped into memory, or read where the file system cannot map files.

    Python's own mmap keeps a descriptor of each file, and an index may have more segments than a process descriptors.
    """
    if not size:
        return torch.empty(0, dtype=torch.uint8)
    try:
        return torch.from_file(f"/dev/fd/{descriptor}", shared=False, size=size, dtype=torch.uint8)
    except RuntimeError:
        content = np.empty((size, 1), np.uint8)
        if not read_exactly(descriptor, 0, content):  # type: ignore[arg-type]
            raise
        return torch.from_numpy(content[:, 0])
