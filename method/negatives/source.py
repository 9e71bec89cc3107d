"""Opens the source of hard negatives that the options select: encoded during training or read from a cache."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch

from method.config.settings import NegativesSettings
from method.data.captions import Caption
from method.data.dataset import FeatureReader
from method.data.dataset_files import check_files
from method.data.edits import Kind, NegativeSource
from method.negatives.cache import compute_fingerprint
from method.negatives.cached import CachedNegatives
from method.negatives.editor import CaptionEditor
from method.negatives.online import OnlineNegatives
from method.negatives.vocabulary import Vocabulary, read_vocabulary
from method.text.check import log_encoder_check
from method.text.encoder import open_text_encoder
from method.text.encoder_files import encoder_digest

log = logging.getLogger(__name__)


def open_negatives(
    settings: NegativesSettings,
    captions: Sequence[Caption],
    dataset_ids: Collection[str],
    device: torch.device,
    reader: FeatureReader | None = None,
) -> NegativeSource | None:
    """The source of hard negatives that the options select; None, without reading any file, if they are off.

    Args:
        settings: of the training.
        captions: all captions of the training file, in file order.
        dataset_ids: ids of all captions of the dataset, training and evaluation.
        device: of the text encoder if there is no cache.
        reader: of the token features to compare the text encoder with; None skips the comparison. Caches are not
            compared: that happened when they were built.

    Raises:
        InputError: for a vocabulary, encoder or cache that is missing, invalid or built from something else.
    """
    if not settings.kinds:
        return None
    vocabularies = read_vocabularies(settings, dataset_ids, settings.needed)
    counts = {kind: settings.counts[kind] for kind in settings.needed}
    source: NegativeSource
    if settings.cache is None:
        editors = [CaptionEditor(captions, vocabulary) for vocabulary in vocabularies]
        encoder = open_text_encoder(settings.encoder, device, settings.precision)
        if reader is not None:
            log_encoder_check(encoder, reader, captions)
        source = OnlineNegatives(editors, counts, encoder, settings.seed)
    else:
        expected = cache_fingerprint(settings, captions, vocabularies)
        source = CachedNegatives(settings.cache, captions, expected, counts, settings.seed)
    for kind, editable in source.count_editable().items():
        log.info("%d of %d training captions have %s edits", editable, len(captions), kind)
    return source


def read_vocabularies(
    settings: NegativesSettings, dataset_ids: Collection[str], kinds: Sequence[Kind]
) -> list[Vocabulary]:
    """The vocabularies of some kinds; see `read_vocabulary`. InputError naming every file that is missing."""
    files: dict[str, Path | None] = {}
    for kind in kinds:
        files[f"id_{kind}_dict"], files[f"total_{kind}_dict"] = settings.vocabularies[kind]
    check_files(files, settings.encoder.dataset, settings.root)
    found = {flag: path for flag, path in files.items() if path is not None}
    return [read_vocabulary(found[f"id_{kind}_dict"], found[f"total_{kind}_dict"], kind, dataset_ids) for kind in kinds]


def cache_fingerprint(
    settings: NegativesSettings, captions: Sequence[Caption], vocabularies: Sequence[Vocabulary]
) -> dict[str, Any]:
    """The fingerprint that a cache for these settings must have.

    The text encoder is left out, with a warning, if its folder does not exist: training from a cache does not need it.
    """
    digest, encoder = None, settings.encoder
    if encoder.folder.exists():
        digest = encoder_digest(encoder.folder, encoder.dataset)
    else:
        log.warning("%s: no such folder, so the cache is not checked against its text encoder", encoder.folder)
    return compute_fingerprint(
        captions,
        vocabularies,
        digest,
        max_desc_l=encoder.max_tokens,
        q_feat_size=encoder.width,
        seed=settings.seed,
        text_layer=encoder.layer,
        text_special_tokens=encoder.special_tokens,
    )
