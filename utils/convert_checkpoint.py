"""Convert a published checkpoint to our format, ours to the published format, or either to a folder for a model hub.

    python utils/convert_checkpoint.py checkpoints/charades.ckpt charades_ours.ckpt --dataset_name charades
    python utils/convert_checkpoint.py results/charades/a3prvr/RUN/model.ckpt charades_published.ckpt
    python utils/convert_checkpoint.py results/charades/a3prvr/RUN/model.ckpt --safetensors charades_model

A published checkpoint takes its options from configs/<dataset>.yaml; ours stores them.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from easydict import EasyDict

from method.config.architecture import make_architecture
from method.config.earlier import current_options
from method.config.options import plain, read_options
from method.config.parser import Parser, user_path
from method.model.published import check_publishable, to_published
from method.runtime.errors import InputError, run_command
from method.runtime.files import read_json
from method.runtime.run_folder import METRICS, log_to_terminal
from method.training.checkpoint import load_model, log_model_options, model_content, stored_options
from method.training.checkpoint_file import write_checkpoint
from method.training.model_card import model_card
from method.training.model_folder import write_model_folder
from utils.print_metrics import metrics_table

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
        saved=lambda given: current_options(stored_options(given["source"]) or {}),
    )
    source, target, folder = (options.pop(name) for name in ("source", "target", "safetensors"))
    metrics, license_id = options.pop("metrics"), options.pop("license")
    if (target is None) == (folder is None):
        raise InputError("expected a target or --safetensors DIR, and not both")
    if (metrics or license_id) and folder is None:
        raise InputError("--metrics and --license are for --safetensors DIR")
    if (target or folder).exists():
        raise InputError(f"{target or folder}: already exists")
    if folder:
        export(source, folder, options, metrics, license_id)
    else:
        convert(source, target, options)


def convert(source: Path, target: Path, options: EasyDict) -> None:
    """Write `source` to `target` in the other format; `options` describe a published source."""
    described = make_architecture(options)
    loaded = load_model(source, described)
    if loaded.options is None:
        log_model_options(loaded, described, options)
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
    if len(architecture.branches) > 1 and (weight := loaded.options.get("fusion_weight", 0.5)) != 0.5:
        log.warning(
            "%s: the published format does not store the weight of the branches; evaluate with --fusion_weight %s",
            *(target, weight),
        )
    weights = to_published(loaded.model.state_dict(), architecture)
    write_checkpoint(target, {"model": weights, "epoch": loaded.epoch})
    log.info("%s: published format of %s, epoch %d", target, source, loaded.epoch)


def export(source: Path, folder: Path, options: EasyDict, metrics: Path | None, license_id: str | None) -> None:
    """Write `source` as a folder of safetensors, JSON and a model card.

    Args:
        source: a checkpoint, ours or published.
        folder: to write.
        options: of a published source.
        metrics: metrics.json of an evaluation of the source; None: the one beside it, if it is.
        license_id: license that the model card states.
    """
    described = make_architecture(options)
    loaded = load_model(source, described)
    if loaded.options is None:
        log_model_options(loaded, described, options)
        options.fusion_extent = loaded.model.architecture.fusion_extent
    stored = plain(options) if loaded.options is None else loaded.options
    measured = _measured(source, metrics, loaded.sha256)
    card = model_card(
        folder.name,
        loaded.model.architecture,
        dataset=str(stored.get("dataset_name")),
        epoch=loaded.epoch,
        published=loaded.options is None,
        metrics=measured,
        license_id=license_id,
    )
    write_model_folder(folder, model_content(loaded.model, loaded.epoch, stored), measured, card)
    log.info("%s: %s, epoch %d, %s", folder, source, loaded.epoch, "with metrics" if measured else "without metrics")


def _measured(source: Path, given: Path | None, sha256: str) -> dict[str, Any] | None:
    """The metrics of a checkpoint, without what belongs to one machine; None if there are none."""
    path = given or (source if source.is_dir() else source.parent) / METRICS
    if given is None and not path.exists():
        return None
    metrics = read_json(path)
    try:
        same = metrics["checkpoint"]["sha256"] == sha256
        metrics_table(metrics)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise InputError(f"{path}: not the metrics of a run ({type(error).__name__}: {error})") from error
    if not same and given is None:  # of another checkpoint of the run
        return None
    if not same:
        raise InputError(f"{path}: metrics of another checkpoint than {source}")
    dataset = metrics.get("options", metrics).get("dataset_name")
    kept = {name: value for name, value in metrics.items() if name not in ("options", "checkpoint")}
    return {"dataset_name": dataset, **kept, "checkpoint": {"sha256": sha256}}


def _add_files(parser: Parser) -> None:
    parser.add_argument("source", type=user_path, help="checkpoint to read")
    parser.add_argument("target", type=user_path, nargs="?", help="new checkpoint to write")
    add = parser.add_argument_group("export").add_argument
    add("--safetensors", type=user_path, metavar="DIR", help="write a folder for a model hub instead")
    add("--metrics", type=user_path, metavar="FILE", help="metrics.json to export (default: that beside the source)")
    add("--license", metavar="ID", help="license that the model card states, such as mit (default: none)")


if __name__ == "__main__":
    run_command(main)
