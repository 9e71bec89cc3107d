"""What each part of the program takes from the options, typed: below the entry points nobody reads them by key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from method.config.architecture import edit_kinds, make_architecture
from method.config.parser import FITTED
from method.data.dataset_files import DatasetFiles
from method.data.edits import KINDS, Kind
from method.model.architecture import Architecture
from method.runtime.run_folder import RunName
from method.text.encoder import EncoderSettings


def dataset_files(options: Mapping[str, Any]) -> DatasetFiles:
    """The files of the dataset."""
    return DatasetFiles(
        dataset=options["dataset_name"],
        root=options["root_path"],
        recipe=options["feature_recipe"],
        video_feat_path=options["video_feat_path"],
        text_feat_path=options["text_feat_path"],
        caption_train_txt=options["caption_train_txt"],
        caption_test_txt=options["caption_test_txt"],
    )


def run_name(options: Mapping[str, Any]) -> RunName:
    """What the folder of the run is called."""
    return RunName(
        results=options["results_root"],
        dataset=options["dataset_name"],
        experiment=options["exp_id"],
        description=options["description"],
    )


def fixed_fusion_weight(options: Mapping[str, Any]) -> float | None:
    """The weight of the action branch; None if it is fitted."""
    return None if options["fusion_weight"] == FITTED else options["fusion_weight"]


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """How videos and captions are loaded, encoded and scored for evaluation and search.

    fusion_weight: of the action branch; None: fitted, while a training evaluates.
    memory_mb: MiB for a block of scores. precision: of encoders and embeddings.
    """

    fusion_weight: float | None
    memory_mb: int
    precision: str
    video_batch: int
    query_batch: int
    workers: int
    pin_memory: bool


def evaluation_settings(options: Mapping[str, Any]) -> EvaluationSettings:
    """The settings of evaluation and search."""
    return EvaluationSettings(
        fusion_weight=fixed_fusion_weight(options),
        memory_mb=options["eval_memory_mb"],
        precision=options["eval_amp"],
        video_batch=options["eval_context_bsz"],
        query_batch=options["eval_query_bsz"],
        workers=options["num_workers"],
        pin_memory=options["pin_memory"],
    )


@dataclass(frozen=True, kw_only=True)
class ZeroShotSettings:
    """Zero-shot CLIP.

    weight: in the fused score, beside a checkpoint. encoder: folder of the CLIP model.
    text: file of the captions' embeddings, if any. max_frames: of a video.
    """

    weight: float
    encoder: Path
    text: Path | None
    max_frames: int


def zero_shot_settings(options: Mapping[str, Any]) -> ZeroShotSettings | None:
    """The settings of zero-shot CLIP, alone or beside a checkpoint; None if it is not used."""
    if not options["zero_shot"] and not options["zero_shot_weight"]:
        return None
    return ZeroShotSettings(
        weight=options["zero_shot_weight"],
        encoder=options["clip_encoder"],
        text=options["zero_shot_text"],
        max_frames=options["max_ctx_l"],
    )


@dataclass(frozen=True, kw_only=True)
class CheckpointEvaluation:
    """The evaluation of a checkpoint, of zero-shot CLIP or of both as a run of its own.

    checkpoint: None for zero-shot CLIP alone. zero_shot: None for a checkpoint alone.
    architecture: that the options describe, for a published checkpoint. moments: file of the annotated moments.
    multi_gt: file of labels with several right videos; with multi_gt_subset of some captions only.
    feature_cache: folder of the preprocessed features or 'off', None for one beside each feature file.
    """

    checkpoint: Path | None
    zero_shot: ZeroShotSettings | None
    architecture: Architecture
    files: DatasetFiles
    moments: Path | None
    multi_gt: Path | None
    multi_gt_subset: bool
    feature_cache: Path | str | None
    name: RunName
    evaluation: EvaluationSettings
    save_scores: bool
    report: bool


def checkpoint_evaluation(options: Mapping[str, Any]) -> CheckpointEvaluation:
    """What is evaluated, and how."""
    return CheckpointEvaluation(
        checkpoint=options["eval_ckpt"],
        zero_shot=zero_shot_settings(options),
        architecture=make_architecture(options),
        files=dataset_files(options),
        moments=options["moments"],
        multi_gt=options["multi_gt"],
        multi_gt_subset=options["multi_gt_subset"],
        feature_cache=options["feature_cache"],
        name=run_name(options),
        evaluation=evaluation_settings(options),
        save_scores=options["save_scores"],
        report=options["report"],
    )


@dataclass(frozen=True, kw_only=True)
class NegativesSettings:
    """Hard negative queries: what is edited, how often, and what encodes the edits.

    kinds: of edits that --neg_query_loss selects, none if it is off. needed: those of them that a branch trains with.
    counts: edits of a caption per epoch. vocabularies: files by kind, of tags and of words. precision: of the training.
    """

    kinds: tuple[Kind, ...]
    needed: tuple[Kind, ...]
    counts: Mapping[Kind, int]
    vocabularies: Mapping[Kind, tuple[Path | None, Path | None]]
    encoder: EncoderSettings
    cache: Path | None
    precision: str
    seed: int
    root: Path


def negatives_settings(options: Mapping[str, Any]) -> NegativesSettings:
    """The settings of hard negative queries."""
    loss = options["neg_query_loss"]
    kinds = tuple(kind for kind in KINDS if loss in (kind, "both"))
    trained = edit_kinds(options).values()
    return NegativesSettings(
        kinds=kinds,
        needed=tuple(kind for kind in kinds if kind in trained),
        counts={kind: options[f"neg_{kind}_num"] for kind in KINDS},
        vocabularies={kind: (options[f"id_{kind}_dict"], options[f"total_{kind}_dict"]) for kind in KINDS},
        encoder=encoder_settings(options),
        cache=options["neg_cache"],
        precision=options["amp"],
        seed=options["seed"],
        root=options["root_path"],
    )


def encoder_settings(options: Mapping[str, Any]) -> EncoderSettings:
    """The settings of the text encoder."""
    return EncoderSettings(
        folder=options["text_encoder"],
        width=options["q_feat_size"],
        max_tokens=options["max_desc_l"],
        layer=options["text_layer"],
        special_tokens=options["text_special_tokens"],
        dataset=options["dataset_name"],
    )
