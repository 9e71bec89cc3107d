"""Convert a published checkpoint to our format, or ours to the published format.

    python utils/convert_checkpoint.py checkpoints/charades.ckpt charades_ours.ckpt --dataset_name charades
    python utils/convert_checkpoint.py results/charades/a3prvr/RUN/model.ckpt charades_published.ckpt

A published checkpoint takes its options from configs/<dataset>.yaml; ours stores them.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from easydict import EasyDict

from method.config.flags import Parser, user_path
from method.config.options import make_architecture, plain, read_options
from method.model.published import check_publishable, to_published
from method.runtime.errors import InputError, run_command
from method.runtime.run_folder import log_to_terminal
from method.training.checkpoint import load_model, log_model_options, model_content, stored_options
from method.training.checkpoint_file import write_checkpoint

log = logging.getLogger(__name__)

_LISTED_FLAGS = ["dataset_name", "config", "root_path", "model", "neg_query_loss", "neg_query_loss_branch"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Convert the first file into the second."""
    log_to_terminal()
    options = read_options(
        arguments,
        "Convert a checkpoint between the published format and ours.",
        listed=_LISTED_FLAGS,
        extra=_add_files,
        saved=lambda given: stored_options(given["source"]) or {},
    )
    source, target = options.pop("source"), options.pop("target")
    if target.exists():
        raise InputError(f"{target}: already exists")
    convert(source, target, options)


def convert(source: Path, target: Path, options: EasyDict) -> None:
    """Write `source` to `target` in the other format; `options` describe a published source."""
    loaded = load_model(source, make_architecture(options))
    if loaded.options is None:
        log_model_options(options, loaded)
        options.fusion_extent = loaded.model.architecture.fusion_extent
        write_checkpoint(target, model_content(loaded.model, loaded.epoch, plain(options)))
        log.info("%s: converted from the published %s, epoch %d", target, source, loaded.epoch)
        return
    architecture = loaded.model.architecture
    check_publishable(architecture, source)
    if architecture.fusion == "deformable" and architecture.fusion_extent == "valid":
        log.warning(
            "%s was trained with --fusion_extent valid; the published program reads past the end of videos "
            "and will score them differently",
            source,
        )
    weights = to_published(loaded.model.state_dict(), architecture)
    write_checkpoint(target, {"model": weights, "epoch": loaded.epoch})
    log.info("%s: published format of %s, epoch %d", target, source, loaded.epoch)


def _add_files(parser: Parser) -> None:
    parser.add_argument("source", type=user_path, help="checkpoint to read")
    parser.add_argument("target", type=user_path, help="new checkpoint to write")


if __name__ == "__main__":
    run_command(main)
