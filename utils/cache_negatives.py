"""Precompute edited captions, so that training with hard negative queries needs no text encoder.

    python utils/cache_negatives.py --dataset_name charades --neg_query_loss both --neg_cache cache/charades

and then train with the same flags. Size and duration are printed before it starts. After an interruption, the same
command continues. A complete cache is verified, and corrupt parts are rebuilt.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from collections.abc import Sequence

from method.config.architecture import make_architecture
from method.config.options import VOCABULARY_FILES, read_options
from method.config.parser import Parser
from method.config.settings import dataset_files, negatives_settings
from method.data.captions import read_captions
from method.data.dataset_files import open_features
from method.data.edits import Kind
from method.negatives.build_cache import Pools, make_cache
from method.negatives.editor import CaptionEditor
from method.negatives.source import cache_fingerprint, read_vocabularies
from method.ops.precision import enable_fast_matmul
from method.runtime.errors import InputError, run_command
from method.runtime.hardware import choose_device
from method.runtime.processes import expect_one_process
from method.runtime.run_folder import log_to_terminal
from method.text.check import log_encoder_check
from method.text.encoder import open_text_encoder

POOLS_PER_DRAW = 2
_LISTED_FLAGS = [
    "dataset_name",
    "config",
    "recipe",
    "root_path",
    "device",
    "device_ids",
    "seed",
    "text_feat_path",
    "caption_train_txt",
    "caption_test_txt",
    "q_feat_size",
    "max_desc_l",
    "neg_query_loss",
    "neg_action_num",
    "neg_object_num",
    "neg_cache",
    *VOCABULARY_FILES,
    "text encoder",
]


def _add_flags(parser: Parser) -> None:
    parser.add_argument(
        "--pool_size",
        type=int,
        help=f"maximum number of edits of each kind per caption (default: {POOLS_PER_DRAW} times --neg_*_num)",
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Build the cache that the flags describe."""
    expect_one_process("building a cache")
    log_to_terminal()
    options = read_options(
        arguments,
        "Precompute edited captions for training with hard negative queries.",
        listed=_LISTED_FLAGS,
        extra=_add_flags,
    )
    if options.neg_cache is None:
        raise InputError("--neg_cache is missing, expected the folder of the cache")
    options.neg_query_loss = options.neg_query_loss or "both"
    captions = read_captions(options.caption_train_txt)
    evaluated = read_captions(options.caption_test_txt)
    settings = negatives_settings(options)
    vocabularies = read_vocabularies(settings, {caption.id for caption in [*captions, *evaluated]}, settings.kinds)
    editors = [CaptionEditor(captions, vocabulary) for vocabulary in vocabularies]
    sizes: dict[Kind, int] = {}
    for editor in editors:
        drawn = settings.counts[editor.kind]
        sizes[editor.kind] = POOLS_PER_DRAW * drawn if options.pool_size is None else options.pool_size
        if sizes[editor.kind] < drawn:
            raise InputError(f"--pool_size {options.pool_size}: expected at least --neg_{editor.kind}_num {drawn}")
    device = choose_device(options.device, options.device_ids)
    enable_fast_matmul(device)
    encoder = open_text_encoder(settings.encoder, device)
    if options.text_feat_path and options.text_feat_path.exists():  # the cache can be built without them
        log_encoder_check(
            encoder,
            open_features(dataset_files(options), make_architecture(options), needed=()),
            captions,
        )
    fingerprint = cache_fingerprint(settings, captions, vocabularies)
    make_cache(options.neg_cache, Pools(captions, editors, sizes, options.seed), fingerprint, encoder)


if __name__ == "__main__":
    run_command(main)
