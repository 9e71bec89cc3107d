"""The manifest of an index: which segments it has, and which of their videos. Replaced atomically at each change."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from method.runtime.errors import InputError
from method.runtime.files import digest_of, read_json, write_text
from method.serving.index.segment import UnusableIndex

NAME = "manifest.json"
_FORMAT = "A3PRVR index"
_VERSION = 3  # incremented whenever older indexes become unusable

MadeFrom = dict[str, str]
FeatureState = dict[str, Any]


@dataclass(frozen=True)
class SegmentEntry:
    """A segment of an index.

    name, size: of the file. removed: positions of the videos that are no longer in the index.
    features: the files, as `features_state`, that its videos are known to agree with.
    """

    name: str
    size: int
    removed: tuple[int, ...]
    features: FeatureState

    def without(self, positions: set[int]) -> SegmentEntry:
        """The same without more of its videos."""
        return replace(self, removed=tuple(sorted({*self.removed, *positions})))


@dataclass(frozen=True)
class Manifest:
    """What an index consists of.

    generation: incremented at each change. made_from: the model, by the names under which a change is reported.
    excluded: videos that were removed by the user and are not added again unless they are named.
    calibration: what `Index.calibrate` was given; not kept when the index is rebuilt.
    """

    generation: int
    made_from: MadeFrom
    segments: tuple[SegmentEntry, ...] = ()
    excluded: tuple[str, ...] = ()
    calibration: Mapping[str, Any] | None = None

    def changed(self, **changes: Any) -> Manifest:
        """The next generation, with other fields."""
        return replace(self, generation=self.generation + 1, **changes)


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of an index; None if there is none. UnusableIndex if it is damaged or of another version."""
    path = folder / NAME
    if not path.exists():
        return None
    try:
        content = read_json(path)
    except InputError as error:
        raise UnusableIndex(str(error)) from error
    if not isinstance(content, dict) or content.pop("format", None) != _FORMAT:
        raise UnusableIndex(f"{path}: not an index of videos")
    if (version := content.pop("version", None)) != _VERSION:
        raise UnusableIndex(f"{path}: index version {version}, expected {_VERSION}")
    if content.pop("digest", None) != digest_of(content):
        raise UnusableIndex(f"{path}: corrupt, wrong digest")
    segments = tuple(SegmentEntry(**{**own, "removed": tuple(own["removed"])}) for own in content.pop("segments"))
    return Manifest(**{**content, "segments": segments, "excluded": tuple(content["excluded"])})


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace the manifest of an index."""
    content = asdict(manifest)
    sealed = {"format": _FORMAT, "version": _VERSION, **content, "digest": digest_of(content)}
    write_text(folder / NAME, json.dumps(sealed, allow_nan=False) + "\n")
