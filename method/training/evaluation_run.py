"""The evaluation of a checkpoint, of zero-shot CLIP or of both, as a run with a folder of its own."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from method.config.settings import CheckpointEvaluation
from method.data.cache.feature_cache import with_cache
from method.data.captions import read_captions
from method.data.dataset import FeatureReader
from method.data.dataset_files import DATA_FILES, open_features
from method.data.provenance import check_recipe
from method.data.splits import check_content, check_split, describe
from method.evaluation.report.input import ReportInput
from method.evaluation.split_evaluator import SplitEvaluator, known_moments, known_right_videos, write_results
from method.evaluation.zero_shot import ZeroShot, open_zero_shot
from method.model.retrieval import RetrievalModel
from method.model.zero_shot import ZERO_SHOT
from method.ops.precision import enable_fast_matmul
from method.runtime.files import write_json
from method.runtime.processes import SINGLE_PROCESS, Processes
from method.runtime.run_folder import OPTIONS, new_run
from method.training.checkpoint import Loaded, load_model, log_model_options

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Evaluated:
    """A model and its features; epoch, path and sha256 for the record; loaded: None for zero-shot CLIP."""

    model: RetrievalModel
    reader: FeatureReader
    epoch: int
    path: Path
    sha256: str
    loaded: Loaded | None = None


def evaluate_checkpoint(
    settings: CheckpointEvaluation,
    device: torch.device,
    options: Mapping[str, Any],
    processes: Processes = SINGLE_PROCESS,
) -> Path:
    """Evaluate on the evaluation split; results go to a new run folder, which is returned.

    options: of the run as JSON values, written beside the results.
    """
    with processes.raise_on_all():
        enable_fast_matmul(device)
        zero_shot = _open_zero_shot(settings, device, processes.is_first)
    with processes.raise_on_all():  # the embeddings of the captions are there
        files = settings.files
        evaluated = _load_checkpoint(settings, device) or _alone(zero_shot)
        assert files.caption_test_txt is not None
        split = check_split("evaluated split", files.caption_test_txt, evaluated.reader)
        log.info(describe(split))
        if zero_shot is not None:
            zero_shot.check_captions(check_split("evaluated split", files.caption_test_txt, zero_shot.reader))
        if processes.is_first:
            check_content(split, evaluated.reader)
        moments = known_moments(settings.moments, split)
        right_videos = known_right_videos(settings.multi_gt, settings.multi_gt_subset, split)
    with processes.raise_on_all():
        folder = new_run(settings.name, evaluation=True) if processes.is_first else None
    path = processes.broadcast(folder.path if folder else Path())
    with folder or contextlib.nullcontext():
        with processes.raise_on_all():
            if evaluated.loaded is not None:  # once the folder's log is open
                log_model_options(evaluated.loaded, settings.architecture, options)
            if folder:
                write_json(path / OPTIONS, options)
            reader = with_cache(evaluated.reader, [split], settings.feature_cache, settings.evaluation.workers)
            evaluator = SplitEvaluator(settings.evaluation, reader, split, device, processes, right_videos)
        also, weights = None, {}
        if zero_shot is not None and settings.checkpoint is not None:
            also = SplitEvaluator(settings.evaluation, zero_shot.reader, split, device, processes).encode(
                zero_shot.model
            )
            weights = {ZERO_SHOT: zero_shot.settings.weight}
        evaluation = evaluator.evaluate(evaluated.model, path if settings.save_scores else None, moments, also, weights)
        if folder:
            record = files.dataset, evaluated.epoch, evaluated.path
            given = ReportInput(evaluated.model, evaluation, split, *record, moments)
            write_results(folder, given, evaluated.sha256, options, settings.report)
    return path


def _load_checkpoint(settings: CheckpointEvaluation, device: torch.device) -> _Evaluated | None:
    """The checkpoint and its features, if there is one."""
    path = settings.checkpoint
    if path is None:
        return None
    loaded = load_model(path, settings.architecture)
    needed = [name for name in DATA_FILES if name != "caption_train_txt"]
    reader = open_features(settings.files, loaded.model.architecture, needed)
    check_recipe(reader, settings.files.recipe, path)
    return _Evaluated(
        model=loaded.model.to(device),
        reader=reader,
        epoch=loaded.epoch,
        path=path,
        sha256=loaded.sha256,
        loaded=loaded,
    )


def _open_zero_shot(settings: CheckpointEvaluation, device: torch.device, is_first: bool) -> ZeroShot | None:
    """Zero-shot CLIP if it is evaluated; the first process makes the embeddings of the captions if there are none."""
    if settings.zero_shot is None:
        return None
    opened = open_zero_shot(settings.files, settings.zero_shot, device, ["video_feat_path", "caption_test_txt"])
    path = settings.files.caption_test_txt
    assert path is not None
    return opened.with_captions(read_captions(path), path, is_first)


def _alone(zero_shot: ZeroShot | None) -> _Evaluated:
    assert zero_shot is not None  # without a checkpoint
    path, sha256 = zero_shot.source
    return _Evaluated(model=zero_shot.model, reader=zero_shot.reader, epoch=0, path=path, sha256=sha256)
