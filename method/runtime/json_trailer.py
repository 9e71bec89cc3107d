"""The end of a binary file: JSON that describes what precedes it, with its digest.

content | JSON | magic (8 bytes) | size of the JSON (uint64) | SHA-256 of the JSON (32 bytes)
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Mapping
from typing import Any

_TRAILER = struct.Struct("<8sQ32s")


def trailer_of(magic: bytes, described: Mapping[str, Any]) -> bytes:
    """The end of a file whose kind is `magic`, 8 bytes."""
    text = json.dumps(described).encode()
    return text + _TRAILER.pack(magic, len(text), hashlib.sha256(text).digest())


def read_trailer(descriptor: int, magic: bytes) -> tuple[dict[str, Any], int]:
    """The JSON at the end of an open file, and the number of bytes before it.

    LookupError for a file of another kind or a truncated one, ValueError for a wrong digest.
    """
    size = os.fstat(descriptor).st_size
    trailer = os.pread(descriptor, _TRAILER.size, max(0, size - _TRAILER.size))
    if len(trailer) < _TRAILER.size or not trailer.startswith(magic):
        raise LookupError
    _, length, digest = _TRAILER.unpack(trailer)
    start = size - _TRAILER.size - length
    text = os.pread(descriptor, length, start) if start >= 0 else b""
    if hashlib.sha256(text).digest() != digest:
        raise ValueError
    described: dict[str, Any] = json.loads(text)
    return described, start
