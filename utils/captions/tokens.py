"""Token features of captions: encoded once for each sentence, continued after an interruption, written as HDF5.

Encoded sentences are collected in a folder of rows files until the features are complete. A later run reuses them and
the features of the dataset as it is, if they were made by the same text encoder in the same way.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from method.data.cache.rows_file import RowsFile, write_rows
from method.data.captions import Caption, captions_digest
from method.data.features import FeatureFile
from method.data.hdf5_writer import atomic_hdf5
from method.data.preprocessing import FloatRows
from method.data.ragged import Ragged
from method.runtime.disk import format_bytes, free_bytes
from method.runtime.errors import InputError, shown
from method.runtime.progress import progress_bar
from method.text.encoder import TextEncoder

log = logging.getLogger(__name__)

_RECIPE, _ENCODER, _CAPTIONS = "recipe", "encoder", "captions"  # attributes of the HDF5 file
_SENTENCES_PER_PART = 256


def read_recipe(path: Path) -> dict[str, Any] | None:
    """How the token features in a file were made; None if it is not one of these files."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            recipe = json.loads(file.attrs[_RECIPE])
    except (OSError, RuntimeError, KeyError, TypeError, ValueError):
        return None
    return recipe if isinstance(recipe, dict) else None


class TokenStore:
    """Token features (w, D) by sentence: those of an existing file, and those encoded into parts.

    Args:
        parts: folder of rows files, which may hold those of an interrupted run.
        recipe: how the features are made, as JSON; features of another recipe are not used.
        width: D.
        existing: HDF5 file of token features, which may be missing.
        captions: those that it was written with, if they are still the same.
    """

    def __init__(
        self, parts: Path, recipe: Mapping[str, Any], width: int, existing: Path, captions: Sequence[Caption]
    ) -> None:
        self._folder, self._recipe, self._width = parts, dict(recipe), width
        self._open = functools.lru_cache(maxsize=16)(RowsFile)  # there may be more than a process can open
        self._parts: dict[str, Path] = {}
        self._old: dict[str, str] = {}
        if read_recipe(existing) == self._recipe and _read_digest(existing) == captions_digest(captions):
            self._old_file = FeatureFile(existing)
            self._old = {caption.text: caption.id for caption in captions}
        parts.mkdir(parents=True, exist_ok=True)
        for path in sorted(parts.glob("*.rows")):
            try:
                rows = RowsFile(path)
                usable = rows.fingerprint == self._recipe and rows.is_intact()
            except InputError:
                usable = False
            if usable:
                self._parts |= dict.fromkeys(rows.ids, path)
            else:
                path.unlink()

    def __contains__(self, sentence: object) -> bool:
        return sentence in self._old or sentence in self._parts

    def encode(self, sentences: Sequence[str], encoder: TextEncoder) -> None:
        """Encode the sentences that are not there yet, a part at a time.

        InputError for a sentence without tokens, and for features that are not finite.
        """
        missing = [sentence for sentence in dict.fromkeys(sentences) if sentence not in self]
        number = len(list(self._folder.glob("*.rows")))
        starts = range(0, len(missing), _SENTENCES_PER_PART)
        for start in progress_bar(starts, "encoding sentences", "part"):
            part = missing[start : start + _SENTENCES_PER_PART]
            encoded = encoder.encode(part)
            encoded = Ragged(encoded.values.cpu(), encoded.layout)
            if not encoded.values.isfinite().all():
                raise InputError(f"{encoder.folder}: its features are not finite, for example on {shown(part[0])}")
            while (path := self._folder / f"{number:06}.rows").exists():
                number += 1
            write_rows(path, self._recipe, part, self._width, [encoded])
            self._parts |= dict.fromkeys(part, path)

    def read(self, sentence: str) -> FloatRows:
        """The token features of a sentence, (w, D). InputError if they cannot be read."""
        if sentence not in self._parts:
            return self._old_file.read(self._old[sentence], self._width)
        part = self._open(self._parts[sentence])
        rows_wD = np.empty((part.lengths_of([sentence])[0], self._width), np.float32)
        if not part.read_into(sentence, rows_wD):
            raise InputError(f"{part.path}: cannot be read or is corrupt; the same command encodes its sentences again")
        return rows_wD

    def write(self, path: Path, captions: Sequence[Caption], encoder: str) -> None:
        """Write an HDF5 file with an array for each caption, the recipe and the name of the encoder."""
        with atomic_hdf5(path) as file:
            file.attrs[_RECIPE] = json.dumps(self._recipe)
            file.attrs[_ENCODER], file.attrs[_CAPTIONS] = encoder, captions_digest(captions)
            for caption in progress_bar(captions, "writing token features", "caption"):
                file[caption.id] = self.read(caption.text)


def _read_digest(path: Path) -> str:
    with h5py.File(path, "r", locking=False) as file:
        return str(file.attrs.get(_CAPTIONS))


def check_space(folder: Path, rows: int, copies: int, width: int) -> None:
    """InputError unless the disk of a folder holds this many rows of features in so many copies."""
    size, free = 4 * rows * width, free_bytes(folder)
    log.info("token features: %s", format_bytes(size))
    if copies * size > free:
        raise InputError(
            f"{folder}: the token features need {format_bytes(copies * size)} of disk while they are made, "
            f"{format_bytes(free)} are free"
        )
