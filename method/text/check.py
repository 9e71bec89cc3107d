"""Checks that a text encoder reproduces the token features of a dataset, by encoding a sample of captions.

The dataset's captions were encoded in advance; edited captions and typed sentences are encoded by this program. If the
encoder, the layer or the special tokens differ, a model ranks wrongly without any error.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import torch

from method.data.captions import Caption
from method.data.dataset import FeatureReader
from method.runtime.errors import InputError
from method.text.encoder import SpecialTokens, TextEncoder

log = logging.getLogger(__name__)

SAMPLED_CAPTIONS = 20
MIN_COSINE = 0.99
_LAYERS_TO_TRY = (-1, -2)


@dataclass(frozen=True)
class Agreement:
    """Agreement of encoded captions with their stored token features.

    captions: number of captions compared. length_mismatches: those with a different number of tokens.
    cosine: mean over the tokens of all other captions; None if there are none.
    """

    captions: int
    length_mismatches: int
    cosine: float | None

    @property
    def is_good(self) -> bool:
        """Whether the features can come from this encoder, layer and treatment of special tokens."""
        return self.length_mismatches == 0 and self.cosine is not None and self.cosine >= MIN_COSINE

    def __str__(self) -> str:
        parts = [] if self.cosine is None else [f"mean cosine {self.cosine:.4f}"]
        if self.length_mismatches:
            parts.append(f"{self.length_mismatches} of {self.captions} captions have a different number of tokens")
        return ", ".join(parts)


def compare_with_stored(encoder: TextEncoder, reader: FeatureReader, captions: Sequence[Caption]) -> Agreement:
    """Encode a fixed sample of up to 20 captions and compare it with their stored token features.

    InputError if token features are missing or invalid, or if a caption cannot be encoded.
    """
    count = min(SAMPLED_CAPTIONS, len(captions))
    sample = [captions[index * len(captions) // count] for index in range(count)]
    encoded = encoder.encode([caption.text for caption in sample])
    stored = reader.gather_queries([caption.id for caption in sample])
    pairs = zip(
        encoded.values.cpu().split(encoded.layout.lengths), stored.values.split(stored.layout.lengths), strict=True
    )
    cosines = [(one * other).sum(1) for one, other in pairs if len(one) == len(other)]
    return Agreement(count, count - len(cosines), float(torch.cat(cosines).mean()) if cosines else None)


def check_encoder(encoder: TextEncoder, reader: FeatureReader, captions: Sequence[Caption]) -> tuple[bool, str]:
    """Whether an encoder reproduces a dataset's token features, and a one-line message with the measured agreement.

    If it does not, the message names the layer and treatment of special tokens that would, if there are any.
    """
    try:
        agreement = compare_with_stored(encoder, reader, captions)
    except InputError as error:
        return False, f"{encoder.folder}: not compared with the token features: {error}"
    if agreement.is_good:
        return True, f"{encoder.folder}: matches the token features of {agreement.captions} captions ({agreement})"
    line = (
        f"{encoder.folder}: does not match the token features in {reader.texts.path} ({agreement}, expected at least "
        f"{MIN_COSINE}) with {_flags(encoder)}"
    )
    better = _better_settings(encoder, reader, captions)
    return False, line if better is None else f"{line}; use {better}"


def log_encoder_check(encoder: TextEncoder, reader: FeatureReader, captions: Sequence[Caption]) -> None:
    """Log the message of `check_encoder`, as a warning if the encoder does not match."""
    matches, line = check_encoder(encoder, reader, captions)
    log.log(logging.INFO if matches else logging.WARNING, "%s", line)


def _better_settings(encoder: TextEncoder, reader: FeatureReader, captions: Sequence[Caption]) -> str | None:
    """The flags with which the encoder matches best, and their agreement; None if it matches with none."""
    best, flags = MIN_COSINE, None
    for layer in _LAYERS_TO_TRY:
        try:
            at_layer = encoder.with_settings(layer, encoder.special_tokens)
            for special_tokens in get_args(SpecialTokens):
                other = at_layer.with_settings(layer, special_tokens)
                agreement = compare_with_stored(other, reader, captions)
                if agreement.is_good and agreement.cosine is not None and agreement.cosine >= best:
                    best, flags = agreement.cosine, f"{_flags(other)} ({agreement})"
        except InputError:  # the encoder lacks this layer, or a caption has only special tokens
            continue
    return flags


def _flags(encoder: TextEncoder) -> str:
    return f"--text_layer {encoder.layer} --text_special_tokens {encoder.special_tokens}"
