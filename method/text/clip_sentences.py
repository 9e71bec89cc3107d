"""Sentences as the queries of zero-shot CLIP: one embedding each, made when needed or kept in a text feature file.

Letters: E sentences, D width of CLIP's embeddings.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import torch

from method.data.captions import Caption, captions_digest
from method.data.hdf5_writer import atomic_hdf5
from method.data.preprocessing import normalize_rows
from method.data.ragged import Layout, Ragged
from method.runtime.errors import InputError
from method.runtime.files import read_json, require_file
from method.runtime.pretrained import CLIP_REMEDY, clip_digest, clip_files
from method.runtime.progress import progress_bar
from method.text.clip import ClipTextEncoder

log = logging.getLogger(__name__)

_MADE_FROM = "made_from"  # attribute of a file written here, JSON
_BLOCK = 1024  # sentences


class ClipSentences:
    """Encodes sentences by CLIP as queries of one row: the normalised embedding.

    InputError if the folder is not that of a complete CLIP model.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        self._encoder = ClipTextEncoder(folder, device)
        self.folder, self.width, self.max_tokens = folder, self._encoder.width, self._encoder.max_tokens

    def encode(self, sentences: Sequence[str]) -> Ragged:
        """The embeddings (E, D) of E sentences as E queries."""
        rows_ED = normalize_rows(self._encoder.encode(sentences))
        return Ragged(rows_ED, Layout.of([1] * len(sentences), device=rows_ED.device))

    def fills(self, sentence: str) -> bool:
        """Whether a sentence has as many tokens as the model reads, or more."""
        return self._encoder.count_tokens(sentence) >= self.max_tokens


def clip_width(folder: Path) -> int:
    """Width of the embeddings of a CLIP model, from its configuration. InputError if it is incomplete."""
    clip_files(folder)
    config = read_json(folder / "config.json")
    width = config.get("projection_dim", 512) if isinstance(config, dict) else None
    if not isinstance(width, int):
        raise InputError(f"{folder / 'config.json'}: no projection_dim, expected a CLIP model; {CLIP_REMEDY}")
    return width


def keep_sentence_features(path: Path, captions: Sequence[Caption], folder: Path, device: torch.device) -> None:
    """Write the text feature file of captions, (1, D) each, unless there is one of these captions and this encoder.

    A file that was not written here is the user's and is left as it is.

    Args:
        path: HDF5 file; read only if the encoder's folder is missing.
        captions: to embed.
        folder: of the CLIP model.
        device: to compute on.

    Raises:
        InputError: without an encoder where one is needed, and for an unreadable file or other captions.
    """
    digest = captions_digest(captions)
    found = _made_from(path) if path.exists() else {}
    if found is None or (found and not folder.exists() and found.get("captions") == digest):
        return
    made_from = {"captions": digest, "weights_sha256": clip_digest(folder)}
    if found == made_from:
        return
    encoder = ClipTextEncoder(folder, device)
    log.info("%s: embedding %d captions by CLIP", path, len(captions))
    with atomic_hdf5(path) as file:
        file.attrs[_MADE_FROM] = json.dumps(made_from)
        for start in progress_bar(range(0, len(captions), _BLOCK), "captions by CLIP", "block"):
            block = captions[start : start + _BLOCK]
            rows_ED = encoder.encode([caption.text for caption in block]).cpu()
            if not rows_ED.isfinite().all():
                raise InputError(f"{folder}: its embeddings of captions are not finite; {CLIP_REMEDY}")
            for caption, row_D in zip(block, rows_ED, strict=True):
                file[caption.id] = row_D[None].numpy()


def sentence_weights(path: Path) -> str | None:
    """SHA-256 of the CLIP weights that made a text feature file; None if it does not say."""
    found = _made_from(path)
    return str(found["weights_sha256"]) if found else None


def _made_from(path: Path) -> dict[str, Any] | None:
    """What a text feature file was made from; None if it was not written here."""
    require_file(path)
    try:
        with h5py.File(path, "r", locking=False) as file:
            text = file.attrs.get(_MADE_FROM)
            return None if text is None else dict(json.loads(text))
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        raise InputError(f"{path}: not a readable HDF5 file ({error})") from error
