"""What a feature file of `utils/extract_features.py` says of itself: its recipe, its videos and their durations.

The file has the attribute `features`, JSON of the form that `VideoEncoders.description` returns. Each video's group has
`duration` in seconds and `source`, JSON of a `Source`. Published feature files have none of these.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py

from method.data.dataset import FeatureReader
from method.data.dataset_files import RELEASED
from method.data.features import open_hdf5
from method.runtime.errors import InputError, shown

RECIPES = (*RELEASED, "small")  # of features
FEATURES, DURATION, SOURCE = "features", "duration", "source"  # names of attributes
_DIGITS = 12  # of a SHA-256, in the recipe of a model


@dataclass(frozen=True)
class Source:
    """The video file that features were made from: size in bytes, modification time in ns, and SHA-256."""

    size: int
    modified: int
    sha256: str

    def is_file(self, path: Path) -> bool:
        """Whether the file has this size and time."""
        status = path.stat()
        return (status.st_size, status.st_mtime_ns) == (self.size, self.modified)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    """The open feature file, closed at the end. InputError if it is missing or damaged."""
    file = open_hdf5(path)
    try:
        yield file
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    finally:
        file.close()


def read_description(path: Path) -> dict[str, Any] | None:
    """The recipe, and by stream the encoder, weights_sha256, rate and width; None for a file that does not say.

    InputError if the file or its description cannot be read.
    """
    with _opened(path) as file:
        text = file.attrs.get(FEATURES)
    if text is None:
        return None
    try:
        description = json.loads(text)
        recipe_of(description, description["streams"])
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: attribute {FEATURES!r} is {shown(text)}, expected a recipe and streams") from error
    return dict(description)


def recipe_of(description: Mapping[str, Any], streams: Collection[str]) -> str:
    """The recipe of some streams as a model stores it: the name, and the weights that made each stream.

    >>> made = {"clip_feat": {"weights_sha256": "0123456789abcdef"}, "i3d_feat": {"weights_sha256": "00"}}
    >>> recipe_of({"recipe": "charades", "streams": made}, ["clip_feat"])
    'charades clip_feat:0123456789ab'
    """
    made = description["streams"]
    weights = [f"{key}:{made[key]['weights_sha256'][:_DIGITS]}" for key in sorted(made) if key in streams]
    return " ".join([str(description["recipe"]), *weights])


def check_recipe(reader: FeatureReader, expected: str | None, model: Path | str) -> str | None:
    """Refuse features made by another recipe, or with other weights, than those of a model.

    Args:
        reader: of the features that the model reads.
        expected: the model's recipe, a name or as `recipe_of`; None if it is unknown.
        model: the checkpoint or dataset, for messages.

    Returns:
        The recipe that a checkpoint should store: that of the features, or `expected` if they do not say.

    Raises:
        InputError: naming both recipes.
    """
    path = reader.videos.path
    description = read_description(path)
    if description is None:
        return expected
    found = recipe_of(description, [key for key, _ in reader.streams.values()])
    if expected is None:
        return found
    (name, *weights), (expected_name, *expected_weights) = found.split(), expected.split()
    if name != expected_name:
        raise InputError(
            f"{path}: features of recipe {name}, but {model} needs features of recipe {expected_name}; extract the "
            f"videos with --recipe {expected_name}, or use a checkpoint of recipe {name}"
        )
    others = dict(part.split(":") for part in expected_weights)
    for key, digest in (part.split(":") for part in weights):
        if digest != others.get(key, digest):
            raise InputError(
                f"{path}: {key} was made by an encoder with other weights (SHA-256 {digest}...) than the features "
                f"that {model} was trained on ({others[key]}...)"
            )
    return found


def list_videos(path: Path, streams: Collection[str]) -> list[str]:
    """The ids of all videos of a feature file that have these streams. InputError if there are none."""
    with _opened(path) as file:
        ids = list(_groups_with(file, "", set(streams)))
    if not ids:
        raise InputError(f"{path}: no video with {' and '.join(sorted(streams))}")
    return ids


def has_stream(path: Path, key: str) -> bool:
    """Whether any video of a feature file has a stream."""
    with _opened(path) as file:
        return any(True for _ in _groups_with(file, "", {key}))


def stream_width(path: Path, key: str) -> int:
    """Numbers in a row of a stream, as the first video that has it says. InputError if there is none."""
    with _opened(path) as file:
        for video_id in _groups_with(file, "", {key}):
            shape = getattr(file[f"{video_id}/{key}"], "shape", None)
            return int(shape[-1]) if shape else 0
    raise InputError(f"{path}: no video with {key}")


def _groups_with(group: h5py.Group, prefix: str, streams: set[str]) -> Iterator[str]:
    """Names of the groups below this one that hold arrays of these names; the id of a video in a folder has slashes."""
    names = list(group)
    if prefix and streams <= set(names):
        yield prefix.rstrip("/")
    for name in names:
        if name not in streams and isinstance(inner := group.get(name), h5py.Group):
            yield from _groups_with(inner, f"{prefix}{name}/", streams)


def read_sources(path: Path, streams: Collection[str]) -> dict[str, Source]:
    """The video files from which the features of a file were made, by video id. InputError if it cannot be read."""
    with _opened(path) as file:
        texts = {video_id: file[video_id].attrs[SOURCE] for video_id in _groups_with(file, "", set(streams))}
        return {video_id: Source(**json.loads(text)) for video_id, text in texts.items()}


def read_durations(path: Path, video_ids: Iterable[str]) -> dict[str, float]:
    """Seconds of those of these videos whose duration the feature file has."""
    with _opened(path) as file:
        if FEATURES not in file.attrs:
            return {}
        found = ((video_id, file[video_id].attrs.get(DURATION)) for video_id in video_ids if video_id in file)
        return {video_id: float(seconds) for video_id, seconds in found if seconds is not None}
