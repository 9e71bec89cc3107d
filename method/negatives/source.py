"""Opens the source of hard negatives that the options select: encoded during training or read from a cache."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from method.config.branches import negative_branches
from method.config.settings import encoder_settings
from method.data.captions import Caption
from method.data.dataset import FeatureReader
from method.data.dataset_files import check_files
from method.data.edits import KINDS, Kind, NegativeSource
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
    options: Mapping[str, Any],
    captions: Sequence[Caption],
    dataset_ids: Collection[str],
    device: torch.device,
    reader: FeatureReader | None = None,
) -> NegativeSource | None:
    """The source of hard negatives that the options select; None, without reading any file, if they are off.

    Args:
        options: from `method.config.options.read_options`.
        captions: all captions of the training file, in file order.
        dataset_ids: ids of all captions of the dataset, training and evaluation.
        device: of the text encoder if there is no cache.
        reader: of the token features to compare the text encoder with; None skips the comparison. Caches are not
            compared: that happened when they were built.

    Raises:
        InputError: for a vocabulary, encoder or cache that is missing, invalid or built from something else.
    """
    if options["neg_query_loss"] is None:
        return None
    # With both kinds, each branch uses its own kind; the kind of a branch without the loss is not needed.
    wanted = negative_branches(options) if options["neg_query_loss"] == "both" else KINDS
    vocabularies = read_vocabularies(options, dataset_ids, wanted)
    counts: dict[Kind, int] = {vocabulary.kind: options[f"neg_{vocabulary.kind}_num"] for vocabulary in vocabularies}
    source: NegativeSource
    if options["neg_cache"] is None:
        editors = [CaptionEditor(captions, vocabulary) for vocabulary in vocabularies]
        encoder = open_text_encoder(encoder_settings(options), device, options["amp"])
        if reader is not None:
            log_encoder_check(encoder, reader, captions)
        source = OnlineNegatives(editors, counts, encoder, options["seed"])
    else:
        expected = cache_fingerprint(options, captions, vocabularies)
        source = CachedNegatives(options["neg_cache"], captions, expected, counts, options["seed"])
    for kind, editable in source.count_editable().items():
        log.info("%d of %d training captions have %s edits", editable, len(captions), kind)
    return source


def read_vocabularies(
    options: Mapping[str, Any], dataset_ids: Collection[str], wanted: Collection[str] = KINDS
) -> list[Vocabulary]:
    """The vocabularies of the kinds that both `wanted` and `--neg_query_loss` include; see `read_vocabulary`."""
    kinds = [kind for kind in KINDS if kind in wanted and options["neg_query_loss"] in (kind, "both")]
    names = {kind: (f"id_{kind}_dict", f"total_{kind}_dict") for kind in kinds}
    needed = {name: options[name] for pair in names.values() for name in pair}
    check_files(needed, options["dataset_name"], options["root_path"])
    return [read_vocabulary(options[tags], options[words], kind, dataset_ids) for kind, (tags, words) in names.items()]


def cache_fingerprint(
    options: Mapping[str, Any], captions: Sequence[Caption], vocabularies: Sequence[Vocabulary]
) -> dict[str, Any]:
    """The fingerprint that a cache for these options must have.

    The text encoder is left out, with a warning, if its folder does not exist: training from a cache does not need it.
    """
    digest = None
    if options["text_encoder"].exists():
        digest = encoder_digest(options["text_encoder"], options["dataset_name"])
    else:
        log.warning("%s: no such folder, so the cache is not checked against its text encoder", options["text_encoder"])
    names = ("max_desc_l", "q_feat_size", "seed", "text_layer", "text_special_tokens")
    flags = {flag: options[flag] for flag in names}
    return compute_fingerprint(captions, vocabularies, digest, **flags)
