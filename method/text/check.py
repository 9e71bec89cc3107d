"""Whether a text encoder gives the token features that a dataset has: some captions are encoded and compared.

Edited captions and typed sentences are encoded here, the dataset's captions were encoded elsewhere. A model that is
trained on the one and meets the other, from another layer or with other special tokens, ranks wrong without an error.
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
    """How well encoded captions agree with their stored token features.

    captions: how many were compared. other_lengths: how many of them have another number of tokens.
    cosine: mean over all tokens of the others, None where there is none.
    """

    captions: int
    other_lengths: int
    cosine: float | None

    @property
    def is_good(self) -> bool:
        """Whether the encoder, at this layer and with these special tokens, can be the one of the features."""
        return self.other_lengths == 0 and self.cosine is not None and self.cosine >= MIN_COSINE

    def __str__(self) -> str:
        parts = [] if self.cosine is None else [f"mean cosine {self.cosine:.4f}"]
        if self.other_lengths:
            parts.append(f"{self.other_lengths} of {self.captions} captions have another number of tokens")
        return ", ".join(parts)


def compare_with_stored(encoder: TextEncoder, reader: FeatureReader, captions: Sequence[Caption]) -> Agreement:
    """Encode about twenty captions, always the same ones, and compare them with their stored token features.

    InputError for token features that are missing or broken, and for captions that cannot be encoded.
    """
    count = min(SAMPLED_CAPTIONS, len(captions))
    sample = [captions[number * len(captions) // count] for number in range(count)]
    encoded = encoder.encode([caption.text for caption in sample])
    stored = reader.gather_queries([caption.id for caption in sample])
    pairs = zip(
        encoded.values.cpu().split(encoded.layout.lengths), stored.values.split(stored.layout.lengths), strict=True
    )
    cosines = [(one * other).sum(1) for one, other in pairs if len(one) == len(other)]
    return Agreement(count, count - len(cosines), float(torch.cat(cosines).mean()) if cosines else None)


def check_encoder(encoder: TextEncoder, reader: FeatureReader, captions: Sequence[Caption]) -> tuple[bool, str]:
    """Whether an encoder gives a dataset's token features, and a line that says so with the number.

    Where it does not, the line names another layer or treatment of special tokens that would, if there is one.
    """
    try:
        found = compare_with_stored(encoder, reader, captions)
    except InputError as error:
        return False, f"{encoder.folder}: not compared with the token features: {error}"
    if found.is_good:
        return True, f"{encoder.folder}: gives the token features of {found.captions} captions ({found})"
    line = (
        f"{encoder.folder}: does not give the token features in {reader.texts.path} ({found}, expected at least "
        f"{MIN_COSINE}) with {_flags(encoder)}"
    )
    better = _better_settings(encoder, reader, captions)
    return False, line if better is None else f"{line}; {better} would"


def log_encoder_check(encoder: TextEncoder, reader: FeatureReader, captions: Sequence[Caption]) -> None:
    """Log the line of `check_encoder`, as a warning where the encoder does not fit."""
    fits, line = check_encoder(encoder, reader, captions)
    log.log(logging.INFO if fits else logging.WARNING, "%s", line)


def _better_settings(encoder: TextEncoder, reader: FeatureReader, captions: Sequence[Caption]) -> str | None:
    """The flags under which the encoder gives the token features, with their number; None when none do."""
    best, flags = MIN_COSINE, None
    for layer in _LAYERS_TO_TRY:
        try:
            at_layer = encoder.with_settings(layer, encoder.special_tokens)
            for special_tokens in get_args(SpecialTokens):
                other = at_layer.with_settings(layer, special_tokens)
                found = compare_with_stored(other, reader, captions)
                if found.is_good and found.cosine is not None and found.cosine >= best:
                    best, flags = found.cosine, f"{_flags(other)} ({found})"
        except InputError:  # the encoder has no such layer, or a caption is nothing but special tokens
            continue
    return flags


def _flags(encoder: TextEncoder) -> str:
    return f"--text_layer {encoder.layer} --text_special_tokens {encoder.special_tokens}"
