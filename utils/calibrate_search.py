"""Measure how often the first result of a search is right at each score, so that answers have a confidence.

    python utils/index.py calibrate --eval_ckpt results/charades/a3prvr/RUN/model.ckpt
    python utils/index.py calibrate --dataset_name charades --zero_shot

Fitted on the captions of the evaluated split, which the model was not trained on, and stored with the index that they
are searched in. Prints how well it holds for captions of other videos. Run it again for another checkpoint, fusion
weight or precision.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import method  # noqa: F401 (sets OpenMP variables before torch is imported)

from method.config.options import read_options
from method.config.parser import Parser
from method.data.captions import Caption, read_captions
from method.data.dataset_files import DatasetFiles
from method.runtime.errors import InputError, run_command
from method.runtime.processes import expect_one_process
from method.runtime.progress import be_quiet
from method.runtime.run_folder import log_to_terminal
from method.search import load_searcher, search_settings
from method.serving.calibration import Calibration, fit
from method.serving.calibration_file import save
from method.serving.flags import LISTED_FLAGS, add_index_flags
from method.serving.opening import searched_folders
from method.serving.searcher import Searcher
from method.training.resume import saved_options
from utils.runs.tables import FORMATS, Table, show

log = logging.getLogger(__name__)

FEW = 300  # captions; with fewer, the confidence is off by more than about 0.05
_WITHOUT_EFFECT = {"moments", "text encoder", "neg_query_loss", "neg_query_loss_branch"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Fit the calibration of the search that the command line describes, store it and print its reliability."""
    expect_one_process("calibrate_search")
    log_to_terminal()
    options = read_options(
        arguments,
        "Fit the confidence of search results.",
        listed=[name for name in LISTED_FLAGS if name not in _WITHOUT_EFFECT],
        extra=_add_flags,
        saved=saved_options,
    )
    be_quiet(options.quiet)
    options.update(moments_per_video=1, min_confidence=0.0)
    searcher, settings = load_searcher(options), search_settings(options)
    calibration = calibrate(searcher, settings.files)
    folder = searched_folders(settings)[0]
    save(folder, settings.split, calibration)
    log.info("stored in %s", folder)
    show(*report(calibration), options.format)


def _add_flags(parser: Parser) -> None:
    add_index_flags(parser)
    parser.add_argument("--format", choices=FORMATS, default="text", help="of the table")


def calibrate(searcher: Searcher, files: DatasetFiles) -> Calibration:
    """Fit the confidence of a search on held-out captions of the videos that it searches.

    Args:
        searcher: of the search.
        files: of its dataset.

    Raises:
        InputError: without such captions, or with those of a single video.
    """
    assert searcher.scale is not None
    captions = held_out_captions(searcher, files)
    if len(captions) < FEW:
        log.warning("only %d captions to fit the confidence on: it is rough below %d", len(captions), FEW)
    score_Q, right_Q = searcher.first_results(captions)
    described = [caption.video_id for caption in captions]
    videos = len(searcher.video_ids)
    return fit(score_Q.numpy(), right_Q.numpy(), described, searcher.scale, files.dataset, videos)


def held_out_captions(searcher: Searcher, files: DatasetFiles) -> list[Caption]:
    """The captions of the evaluated split that describe a searched video which is not in the training split."""
    if files.caption_test_txt is None:
        raise InputError(f"dataset {files.dataset} has no captions, expected some to fit the confidence on")
    trained = set()
    if files.caption_train_txt is not None:
        trained = {caption.video_id for caption in read_captions(files.caption_train_txt)}
    searched = set(searcher.video_ids) - trained
    captions = [caption for caption in read_captions(files.caption_test_txt) if caption.video_id in searched]
    if not captions:
        raise InputError(
            f"--split {searcher.split}: no captions of the evaluated split describe these videos, expected "
            "--split test, both or all"
        )
    return captions


def report(calibration: Calibration) -> tuple[list[Table], list[str]]:
    """The table of reliability and what it means."""
    rows = [[f"{own.confidence:.3f}", f"{own.right:.3f}", own.queries] for own in calibration.reliability]
    notes = [
        f"fitted on {calibration.queries} captions searched in {calibration.videos} videos of {calibration.dataset}",
        "table: captions of each half of the videos, by a fit on those of the other half",
        f"expected calibration error {calibration.error:.3f}",
    ]
    return [Table(["confidence", "first right", "captions"], rows, left=())], notes


if __name__ == "__main__":
    run_command(main)
