"""Options as earlier versions stored them in runs and checkpoints, in the form of this version."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from method.config.parser import PUBLISHED
from method.data.dataset_files import RELEASED

# What trainings did before they recorded these options.
_BEFORE: dict[str, Any] = {"recipe": PUBLISHED, "ema": 0.0, "lr_schedule": "linear"}
_BEFORE |= {"losses": "triplet,nce", "fused_loss": "off", "false_negatives": "off"}
_BEFORE |= {"soft_targets": 0.0, "soft_target_teacher": "videos", "input_init": "normal", "fusion_init": "normal"}
_BEFORE |= {"head": "frames", "attention": "plain", "registers": 0, "fusion_gradient": False, "query_weights": False}
_BEFORE |= {"neg_query_start_epoch": 0, "frame_drop": 0.0, "token_drop": 0.0, "feature_noise": 0.0}


def current_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The stored options with those that have been added or renamed since.

    `recipe` was that of the features, now `feature_recipe`; before that, those of released datasets were known.

    >>> stored = current_options({"dataset_name": "tvr", "recipe": "charades"})
    >>> stored["feature_recipe"], stored["recipe"]
    ('charades', 'published')
    """
    current = dict(options)
    if "feature_recipe" not in current:
        name = current.get("dataset_name")
        known = {"recipe": name} if name in RELEASED else {}
        before = {**known, **current}
        if "recipe" in before:
            current["feature_recipe"] = before["recipe"]
        current.pop("recipe", None)
    return {**_BEFORE, **current}
