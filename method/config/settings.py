"""What each part of the program takes from the options, typed: below the entry points nobody reads them by key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from method.text.encoder import EncoderSettings


@dataclass(frozen=True)
class EvaluationSettings:
    """How videos and captions are loaded, encoded and scored for evaluation and search.

    fusion_weight: of the action branch. memory_mb: MiB for a block of scores. precision: of encoders and embeddings.
    """

    fusion_weight: float
    memory_mb: int
    precision: str
    video_batch: int
    query_batch: int
    workers: int
    pin_memory: bool


def evaluation_settings(options: Mapping[str, Any]) -> EvaluationSettings:
    """The settings of evaluation and search."""
    return EvaluationSettings(
        fusion_weight=options["fusion_weight"],
        memory_mb=options["eval_memory_mb"],
        precision=options["eval_amp"],
        video_batch=options["eval_context_bsz"],
        query_batch=options["eval_query_bsz"],
        workers=options["num_workers"],
        pin_memory=options["pin_memory"],
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
