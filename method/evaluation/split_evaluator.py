"""Evaluate models on one split, and write the results to a run folder."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from method.config.settings import EvaluationSettings
from method.data.batch import Loader
from method.data.dataset import CorpusVideos, FeatureReader, Queries
from method.data.splits import Split
from method.evaluation.bounds import bounds
from method.evaluation.fusion_weight import candidates
from method.evaluation.metrics import FUSED, distinct_scores
from method.evaluation.moment_metrics import CORPUS_RECALL_AT, moment_metrics
from method.evaluation.moments import TrueMoment, read_moments
from method.evaluation.multi_gt import RightVideos, read_right_videos
from method.evaluation.noise import interval_results, noise_lines
from method.evaluation.ranking import Encoded, Evaluation, encode, evaluate
from method.evaluation.ranks_file import write_ranks
from method.evaluation.report import drawing
from method.evaluation.report.input import ReportInput
from method.evaluation.sharding import shard_batches
from method.evaluation.vcmr import BEST_VIDEOS, vcmr_metrics
from method.model.retrieval import RetrievalModel
from method.runtime.processes import SINGLE_PROCESS, Processes
from method.runtime.run_folder import RANKS, RunFolder, environment_info

log = logging.getLogger(__name__)

_LOGGED = {"R@1": "r1", "R@5": "r5", "R@10": "r10", "R@100": "r100", "SumR": "sumr", "MedR": "medr"}


def known_moments(path: Path | None, split: Split) -> dict[str, TrueMoment]:
    """The annotated moments of a split's captions, none without a file. InputError for a malformed file."""
    if not path:
        return {}
    return read_moments(path, {caption.id for caption in split.captions}) or {}


def known_right_videos(path: Path | None, subset: bool, split: Split) -> RightVideos | None:
    """The labels with several right videos of a split's captions, None without a file. InputError for a wrong one."""
    labels = read_right_videos(path, split.captions, subset)
    if labels is not None:
        log.info("%s", labels.describe())
    return labels


class SplitEvaluator:
    """Evaluates models on one split, whose labels with several right videos may be given, with persistent workers."""

    def __init__(
        self,
        settings: EvaluationSettings,
        reader: FeatureReader,
        split: Split,
        device: torch.device,
        processes: Processes = SINGLE_PROCESS,
        right_videos: RightVideos | None = None,
    ) -> None:
        self.settings = settings
        self.right_videos = right_videos
        self.device = device
        self.processes = processes
        pinned = settings.pin_memory and device.type == "cuda"
        # In the order of the caption file: with extent 'padded' a score depends on the batch.
        videos, size = split.video_ids, settings.video_batch
        own = videos[shard_batches(len(videos), size, processes)]
        self.videos = Loader(CorpusVideos(reader, own), size, settings.workers, pinned)
        captions, size = split.captions, settings.query_batch
        own_captions = captions[shard_batches(len(captions), size, processes)]
        self.queries = Loader(Queries(reader, own_captions), size, settings.workers, pinned)

    def encode(self, model: RetrievalModel) -> Encoded:
        """The videos and captions as a model in evaluation mode encodes them."""
        precision = self.settings.precision
        return encode(model, self.videos, self.queries, self.device, precision, self.processes)

    def evaluate(
        self,
        model: RetrievalModel,
        scores_in: Path | None = None,
        moments: Mapping[str, TrueMoment] | None = None,
        also: Encoded | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> Evaluation:
        """Evaluate a model; a fusion weight that is fitted is fitted to this split.

        Args:
            model: to evaluate.
            scores_in: folder on whose disk the scores are stored, if given.
            moments: annotated moments; if there are any, what their metrics need is kept.
            also: the same split encoded by another model.
            weights: in the fused score, of each branch of that other model.
        """
        settings = candidates(self.settings, model)
        for name, weight in (weights or {}).items():
            settings = [one.with_branch(name, weight) for one in settings]
        return evaluate(
            model,
            self.videos,
            self.queries,
            self.device,
            settings[0],
            scores_in,
            self.processes,
            self.right_videos,
            BEST_VIDEOS if moments else 0,
            also,
            settings[1:],
        )


def write_results(folder: RunFolder, given: ReportInput, sha256: str, options: Mapping[str, Any], report: bool) -> None:
    """Write metrics.json, ranks.csv, scores.npz if scores were stored, and the report if requested; log the recalls.

    Args:
        folder: of the run.
        given: the evaluated model and its scores.
        sha256: digest of the evaluated checkpoint, whose file may have been replaced by now.
        options: of the run, as JSON values.
        report: whether to write the report.
    """
    evaluation = given.evaluation
    if evaluation.scores is not None:
        folder.write_scores(evaluation.caption_ids, evaluation.video_ids, evaluation.scores)
    write_ranks(folder.path / RANKS, evaluation)
    metrics = evaluation.metrics
    limits = bounds(evaluation.queries.captions, evaluation.ranks)
    moment_results, vcmr = moment_metrics(evaluation, given.moments), vcmr_metrics(evaluation, given.moments)
    right = evaluation.right_ranks
    folder.write_metrics(
        {
            "epoch": given.epoch,
            "videos": len(evaluation.video_ids),
            "queries": len(evaluation.caption_ids),
            **metrics,
            "weights": dict(evaluation.settings.weights),
            **interval_results(evaluation),
            "bounds": limits,
            **({"multi_gt": right.report()} if right is not None else {}),
            **({"moments": moment_results} if moment_results is not None else {}),
            **({"vcmr": vcmr} if vcmr is not None else {}),
            "checkpoint": {"path": str(given.checkpoint), "sha256": sha256},
            "options": dict(options),
            "environment": environment_info(),
        }
    )
    for name in distinct_scores(evaluation.ranks):
        log.info("%-6s %s", name, recalls(metrics[name]))
    for line in noise_lines(evaluation, limits):
        log.info(line)
    if right is not None:
        log.info("%s, several right videos: %s", FUSED, recalls(right.metrics[FUSED]))
    if vcmr is not None:
        log.info("video corpus moment retrieval: %s", vcmr_recalls(vcmr))
    log.info("metrics in %s", folder.path / "metrics.json")
    if report:
        with drawing("the report"):
            from method.evaluation.report.write import write_report  # loads Matplotlib, which takes a second

            log.info("report in %s", write_report(folder.path, given, vcmr))


def recalls(metrics: Mapping[str, float]) -> str:
    """The metrics that papers report, in one line."""
    return "  ".join(f"{name} {metrics[key]:5.1f}" for name, key in _LOGGED.items())


def vcmr_recalls(metrics: Mapping[str, float]) -> str:
    """The moment recalls that papers report, at an IoU of 0.5 and 0.7, in one line."""
    named = [f"R@{k} {metrics[f'r{k}_iou0.5']:.1f}/{metrics[f'r{k}_iou0.7']:.1f}" for k in CORPUS_RECALL_AT]
    return "  ".join(named) + " (IoU 0.5/0.7)"
