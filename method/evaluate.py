"""Evaluate a checkpoint, ours or a published one.

    python method/evaluate.py --eval_ckpt results/charades/a3prvr/2026-01-31_12-00-00/model.ckpt
    python method/evaluate.py --dataset_name tvr --eval_ckpt checkpoints/tvr.ckpt

A checkpoint of ours carries its options; those of a published one are in configs/<dataset>.yaml. Results go to a new
run folder: metrics.json, with --save_scores scores.npz and with --report the folder report/, whose index.html shows
where the model fails.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import method  # noqa: F401 (before torch, whose threads it tells how to wait)

import torch
from easydict import EasyDict

from method.config.options import DATA_FILES, choose_device, make_architecture, plain, read_options
from method.data.batch import Loader
from method.data.cache.feature_cache import with_cache
from method.data.check import Split, check_files, check_split, describe
from method.data.content import check_content
from method.data.dataset import CorpusVideos, FeatureReader, Queries, stream_keys
from method.data.features import FeatureFile
from method.evaluation.metrics import distinct_scores
from method.evaluation.moment_metrics import moment_metrics
from method.evaluation.moments import TrueMoment, read_moments
from method.evaluation.ranking import Evaluation, evaluate
from method.evaluation.report import drawing
from method.evaluation.report.input import ReportInput
from method.evaluation.scorer import ScoringSettings
from method.evaluation.sharding import shard_batches
from method.model.architecture import Architecture
from method.model.published import options_without_trace
from method.model.retrieval import RetrievalModel
from method.ops.precision import enable_fast_matmul
from method.runtime.errors import InputError, run_command
from method.runtime.files import write_json
from method.runtime.process_group import joined_processes
from method.runtime.processes import SINGLE_PROCESS, Processes
from method.runtime.progress import be_quiet
from method.runtime.run_folder import OPTIONS, RunFolder, circumstances, log_to_terminal, new_run
from method.training.checkpoint import Loaded, load_model
from method.training.resume import kept_options

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> Path:
    """Evaluate the checkpoint that the command line names; returns the folder of the results."""
    with joined_processes() as processes:
        log_to_terminal(processes.is_first)
        with processes.raise_on_all():
            options = read_options(arguments, "Evaluate a checkpoint of A3PRVR.", kept=kept_options)
            be_quiet(options.quiet or not processes.is_first)
            if options.eval_ckpt is None:
                raise InputError("--eval_ckpt FILE is missing")
        return evaluate_checkpoint(options, processes)


def evaluate_checkpoint(options: EasyDict, processes: Processes = SINGLE_PROCESS) -> Path:
    """Evaluate `options.eval_ckpt` on the evaluated split, into a run folder of its own."""
    needed = [name for name in DATA_FILES if name != "caption_train_txt"]
    with processes.raise_on_all():
        device = choose_device(options, processes.local_rank)
        enable_fast_matmul(device)
        loaded = load_model(options.eval_ckpt, make_architecture(options))
        model = loaded.model.to(device)
        log_model_options(options, loaded)
        reader = open_features(options, model.architecture, needed)
        split = check_split("evaluated split", options.caption_test_txt, reader)
        log.info(describe(split))
        if processes.is_first:
            check_content(split, reader)
        moments = known_moments(options, split)
    with processes.raise_on_all():
        folder = new_run(options) if processes.is_first else None
    path = processes.broadcast(folder.path if folder else Path())
    with folder or contextlib.nullcontext():
        with processes.raise_on_all():
            if folder:
                write_json(path / OPTIONS, plain(options))
            reader = cached(options, reader, [split])
            evaluator = SplitEvaluator(options, reader, split, device, processes)
        evaluation = evaluator.evaluate(model, path if options.save_scores else None)
        if folder:
            given = ReportInput(model, evaluation, split, options, loaded.epoch, options.eval_ckpt, moments)
            report(folder, given, loaded.sha256)
    return path


def known_moments(options: Mapping[str, Any], split: Split) -> dict[str, TrueMoment]:
    """The moments of a split's captions as far as they are known. InputError for a file that is there and wrong."""
    if not options["moments"]:
        return {}
    return read_moments(options["moments"], {caption.id for caption in split.captions}) or {}


def open_features(
    options: Mapping[str, Any], architecture: Architecture, needed: Sequence[str] = DATA_FILES
) -> FeatureReader:
    """Open the feature files of a dataset for a model. InputError naming every `needed` file of it that is missing."""
    check_files({name: options[name] for name in needed}, options["dataset_name"], options["root_path"])
    return FeatureReader(
        FeatureFile(options["video_feat_path"]),
        FeatureFile(options["text_feat_path"]),
        stream_keys(architecture.action_width, architecture.object_width, architecture.object_sees),
        architecture.query_width,
        architecture.max_frames,
        architecture.max_words,
    )


def cached(options: Mapping[str, Any], reader: FeatureReader, splits: Iterable[Split]) -> FeatureReader:
    """The reader with the feature cache that the options ask for."""
    if options["feature_cache"] == "off":
        return reader
    return with_cache(reader, splits, options["feature_cache"], options["num_workers"])


class SplitEvaluator:
    """Evaluates models on one split, with the same data workers each time."""

    def __init__(
        self,
        options: Mapping[str, Any],
        reader: FeatureReader,
        split: Split,
        device: torch.device,
        processes: Processes = SINGLE_PROCESS,
    ) -> None:
        self.options = options
        self.device = device
        self.processes = processes
        pinned = options["pin_memory"] and device.type == "cuda"
        workers = options["num_workers"]
        # In the order of the caption file: with extent 'padded' a score depends on the batch.
        videos, size = split.video_ids, options["eval_context_bsz"]
        own = videos[shard_batches(len(videos), size, processes)]
        self.videos = Loader(CorpusVideos(reader, own), size, workers, pinned)
        captions, size = split.captions, options["eval_query_bsz"]
        own_captions = captions[shard_batches(len(captions), size, processes)]
        self.queries = Loader(Queries(reader, own_captions), size, workers, pinned)

    def evaluate(self, model: RetrievalModel, scores_in: Path | None = None) -> Evaluation:
        """Evaluate a model; scores are kept on the disk of the folder `scores_in`, if one is given."""
        settings = ScoringSettings.from_options(self.options, model.architecture.branches)
        return evaluate(model, self.videos, self.queries, self.device, settings, scores_in, self.processes)


def report(folder: RunFolder, given: ReportInput, sha256: str) -> None:
    """Write metrics.json, scores.npz if they were kept and the report if one is asked for, and log the recalls.

    `sha256` is the digest of the checkpoint that was evaluated; by now another may have taken its place.
    """
    evaluation, options = given.evaluation, given.options
    if evaluation.scores is not None:
        folder.write_scores(evaluation.caption_ids, evaluation.video_ids, evaluation.scores)
    metrics = evaluation.metrics
    of_moments = moment_metrics(evaluation, given.moments)
    folder.write_metrics(
        {
            "epoch": given.epoch,
            "videos": len(evaluation.video_ids),
            "queries": len(evaluation.caption_ids),
            **metrics,
            **({"moments": of_moments} if of_moments is not None else {}),
            "checkpoint": {"path": str(given.checkpoint), "sha256": sha256},
            "options": plain(options),
            "made_with": circumstances(),
        }
    )
    for name in distinct_scores(evaluation.ranks):
        log.info("%-6s %s", name, recalls(metrics[name]))
    log.info("metrics in %s", folder.path / "metrics.json")
    if options["report"]:
        with drawing("the report"):
            from method.evaluation.report.write import write_report  # loads the drawing library, which takes a second

            log.info("report in %s", write_report(folder.path, given))


def recalls(metrics: Mapping[str, float]) -> str:
    """One line of the metrics that papers report."""
    return "  ".join(f"{name} {metrics[key]:5.1f}" for name, key in _SHOWN.items())


_SHOWN = {"R@1": "r1", "R@5": "r5", "R@10": "r10", "R@100": "r100", "SumR": "sumr", "MedR": "medr"}


def log_model_options(options: Mapping[str, Any], loaded: Loaded) -> None:
    """Say where a checkpoint of ours overrules the options, and what had to be assumed of a published one."""
    found = loaded.model.architecture
    if loaded.options is None:
        if options["fusion_extent"] not in (None, found.fusion_extent):
            log.warning("published weights decide: fusion_extent is %s", found.fusion_extent)
        assumed = " ".join(f"--{name} {options[name]}" for name in options_without_trace(found))
        log.info("published weights show no trace of these options, assumed: %s", assumed)
        return
    asked = make_architecture(options).as_dict()
    for name, value in found.as_dict().items():
        if name != "temperatures" and asked[name] != value:
            log.warning("the checkpoint decides: %s is %s, not %s", name, value, asked[name])


if __name__ == "__main__":
    run_command(main)
