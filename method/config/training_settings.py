"""What a training takes from the options, typed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from method.config.architecture import edit_kinds
from method.config.settings import fixed_fusion_weight
from method.data.edits import Kind
from method.model.batch_scores import NEGATIVE_QUERIES, LossSettings

_DEBUG_STEPS = 2


@dataclass(frozen=True, kw_only=True)
class StepSettings:
    """Options of a training step.

    hard_from_epoch: first epoch whose triplet negatives are the hardest ones instead of random ones.
    grad_clip: largest norm of all gradients together; 0 or less for none.
    amp: 'off', 'bf16' or 'fp16'.
    seed: of the random negatives, with the epoch and the step, so that all ranks draw the same.
    edit_kinds: for each branch that is trained with hard negative queries the kind of edits that it gets.
    edits_from_epoch: first epoch with hard negative queries.
    """

    hard_from_epoch: int
    grad_clip: float
    amp: str
    losses: LossSettings
    seed: int
    edit_kinds: Mapping[str, Kind] = field(default_factory=dict)
    edits_from_epoch: int = 0


@dataclass(frozen=True, kw_only=True)
class LoopSettings(StepSettings):
    """Options of the training loop and of its steps.

    epochs: number of epochs. early_stop: epochs without a better one before training stops; negative for never.
    ema: decay a step of the weights' running average; 0 for none.
    """

    epochs: int
    early_stop: int
    ema: float = 0.0


@dataclass(frozen=True, kw_only=True)
class InitializationSettings:
    """How a training starts.

    inputs: 'normal', or 'whitened' by the features of the training videos. fusion: 'normal', or 'aligned' with
        orthogonal values and small offsets.
    """

    inputs: str = "normal"
    fusion: str = "normal"
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """A training: its data, its loop, and how often it is saved.

    batch_size: in videos. learning_rate: at its peak. warmup: fraction of all steps over which it rises.
    decay: of the learning rate after that, as `Schedule` names it.
    holdout_fraction: of the training videos, to select the epoch on. max_videos: train on the first so many only.
    features_on_device: keep all training features in GPU memory.
    save_every_steps: within an epoch; 0 saves after epochs only.
    """

    loop: LoopSettings
    batch_size: int
    learning_rate: float
    warmup: float
    decay: str
    weight_decay: float
    holdout_fraction: float
    max_videos: int | None
    workers: int
    pin_memory: bool
    features_on_device: bool
    save_every_steps: int
    initialization: InitializationSettings = field(default_factory=InitializationSettings)


def training_settings(options: Mapping[str, Any]) -> TrainingSettings:
    """The settings of a training."""
    weights = {name: options[f"{name}_weight"] for name in options["losses"].split(",")}
    if options["neg_query_loss"] is not None:
        weights[NEGATIVE_QUERIES] = options["neg_query_loss_weight"]
    losses = LossSettings(
        weights=weights,
        margin=options["margin"],
        hard_pool_size=options["hard_pool_size"],
        label_smoothing=options["neg_loss_label_smoothing"],
        nce_temperature=options["nce_temperature"],
        fused=options["fused_loss"],
        fused_weight=options["fused_loss_weight"],
        fusion_weight=fixed_fusion_weight(options),
        false_negatives=options["false_negatives"],
        similar_from=options["similar_from"],
        soft_targets=options["soft_targets"],
        soft_teacher=options["soft_target_teacher"],
        soft_temperature=options["soft_target_temperature"],
        diverse_scale=options["query_diverse_scale"],
        diverse_margin=options["query_diverse_margin"],
    )
    loop = LoopSettings(
        epochs=options["n_epoch"],
        early_stop=options["max_es_cnt"],
        ema=options["ema"],
        hard_from_epoch=options["hard_negative_start_epoch"],
        grad_clip=options["grad_clip"],
        amp=options["amp"],
        losses=losses,
        seed=options["seed"],
        edit_kinds=edit_kinds(options),
        edits_from_epoch=options["neg_query_start_epoch"],
    )
    return TrainingSettings(
        loop=loop,
        batch_size=options["bsz"],
        learning_rate=options["lr"],
        warmup=options["lr_warmup_proportion"],
        decay=options["lr_schedule"],
        weight_decay=options["wd"],
        holdout_fraction=options["holdout_fraction"],
        max_videos=_DEBUG_STEPS * options["bsz"] if options["debug"] else None,
        workers=options["num_workers"],
        pin_memory=options["pin_memory"],
        features_on_device=options["features_on_device"],
        save_every_steps=options["save_every_steps"],
        initialization=InitializationSettings(
            inputs=options["input_init"], fusion=options["fusion_init"], seed=options["seed"]
        ),
    )
