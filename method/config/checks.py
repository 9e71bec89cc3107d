"""Check the values of the options, each alone and in combination."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from method.config.architecture import edit_kinds, make_branches
from method.config.flags import loss_names
from method.config.parser import FITTED
from method.config.settings import fixed_fusion_weight
from method.config.yaml_values import place_of_branches
from method.model.batch_scores import OPTIMAL_MATCHING
from method.model.branch_spec import check_branches, fused_weights
from method.model.retrieval import HEADS, find_head
from method.runtime.errors import InputError, shown

log = logging.getLogger(__name__)

_LARGEST = 1 << 20  # more than any model or dataset has; the model of a checkpoint has the same limit
_AT_LEAST_ONE = [
    "visual_feat_dim",
    "visual_flow_feat_dim",
    "q_feat_size",
    "max_ctx_l",
    "max_desc_l",
    "cross_attn_head",
    "deformable_heads",
    "deformable_offset_groups",
    "deformable_offset_num",
    "hidden_size",
    "n_heads",
    "bsz",
    "n_epoch",
    "hard_pool_size",
    "neg_action_num",
    "neg_object_num",
    "eval_query_bsz",
    "eval_context_bsz",
    "eval_memory_mb",
]
_AT_LEAST_ZERO = [
    "num_workers",
    "save_every_steps",
    "seed",
    "wd",
    "margin",
    "neg_query_loss_weight",
    "neg_query_start_epoch",
    "fused_loss_weight",
]
_POSITIVE = ["lr", "initializer_range"]
_FRACTIONS = ["lr_warmup_proportion", "zero_shot_weight", "soft_targets", "clip_weight"]
_FRACTIONS_BELOW_ONE = ["input_drop", "drop", "neg_loss_label_smoothing", "holdout_fraction", "similar_from", "ema"]
_FRACTIONS_BELOW_ONE += ["frame_drop", "token_drop"]


def check_options(options: Mapping[str, Any]) -> None:
    """InputError naming the first flag whose value is invalid, alone or in combination with others."""

    def require(flag: str, holds: bool, expected: str) -> None:
        if not holds:
            raise InputError(f"--{flag} {options[flag]}: expected {expected}")

    for flag, value in options.items():
        if isinstance(value, int) and abs(value) >= 2**63:
            raise InputError(f"--{flag} {shown(value)}: expected a number below 2**63")
    for flag in _AT_LEAST_ONE:
        require(flag, 1 <= options[flag] <= _LARGEST, f"at least 1 and at most {_LARGEST}")
    for flag in _AT_LEAST_ZERO:
        require(flag, 0 <= options[flag] < float("inf"), "at least 0")
    for flag in _POSITIVE:
        require(flag, 0 < options[flag] <= _LARGEST, f"a number above 0 and at most {_LARGEST}")
    for flag in _FRACTIONS:
        require(flag, 0 <= options[flag] <= 1, "a fraction from 0 to 1")
    if options["fusion_weight"] != FITTED:
        require("fusion_weight", 0 <= options["fusion_weight"] <= 1, "a fraction from 0 to 1")
    elif options["eval_ckpt"] or options.get("source"):  # of utils/convert_checkpoint.py
        require("fusion_weight", False, "a fraction from 0 to 1; only a training can fit it")
    for flag in _FRACTIONS_BELOW_ONE:
        require(flag, 0 <= options[flag] < 1, "a fraction from 0 to below 1")
    for flag in ("input_drop", "drop"):  # the distance between two dropped values must fit into 32 bits
        require(flag, options[flag] == 0 or options[flag] >= 1e-6, "0 or at least 0.000001")
    scale = options["deformable_offset_scale"]
    require("deformable_offset_scale", 0 <= scale <= _LARGEST, f"at least 0 and at most {_LARGEST}")
    for flag in ("registers", "feature_noise"):
        require(flag, 0 <= options[flag] <= _LARGEST, f"at least 0 and at most {_LARGEST}")
    require("max_es_cnt", options["max_es_cnt"] >= -1, "-1 or more")
    require("hard_negative_start_epoch", options["hard_negative_start_epoch"] >= 0, "0 or more")
    require("grad_clip", options["grad_clip"] == -1 or 0 < options["grad_clip"] < float("inf"), "-1 or a norm above 0")
    kernel = options["deformable_offset_kernel_size"]
    require("deformable_offset_kernel_size", kernel >= 1 and kernel % 2 == 1, "an odd number, at least 1")
    require("head", options["head"] in HEADS, f"one of {', '.join(HEADS)}")
    try:
        find_head(options["head"])
    except TypeError as error:
        raise InputError(f"--head {options['head']}: {error}") from error
    _check_model(options, require)
    _check_losses(options, require)
    evaluated = options["eval_ckpt"] or options["zero_shot"]
    require("only_eval", not options["only_eval"] or bool(evaluated), "--eval_ckpt FILE or --zero_shot beside it")
    alone = not options["eval_ckpt"] and not options["zero_shot_weight"]
    require("zero_shot", not options["zero_shot"] or alone, "no checkpoint; to fuse both, --zero_shot_weight alone")
    if options["device_ids"] is not None:
        require("device_ids", len(options["device_ids"]) == 1, "one GPU")
    if options["device"] is not None:
        require("device", options["device"] >= -1, "the number of a GPU, or -1 for the CPU")


def _check_model(options: Mapping[str, Any], require: Callable[[str, bool, str], None]) -> None:
    width = options["hidden_size"]
    heads = ["n_heads"]
    if options["cross_branch_fusion"]:
        deformable = ["deformable_heads", "deformable_offset_groups"]
        heads += deformable if options["deformable_attn"] else ["cross_attn_head"]
        attending = any(spec.attends_to for spec in make_branches(options).values())
        expected = "both branches on (--action_branch, --phrase_action_branch) or a branch with attends_to"
        require("cross_branch_fusion", attending, expected)
    for flag in heads:
        require(flag, width % options[flag] == 0, f"a divisor of --hidden_size {width}")
    if options["query_weights"] and not options["only_eval"]:
        several = len(make_branches(options)) > 1
        require("query_weights", several and options["fused_loss"] != "off", "two branches and --fused_loss beside it")
    plain = options["attention"] == "plain"
    require("registers", plain or not options["registers"], f"0 with --attention {options['attention']}")
    branches = options["action_branch"] or options["phrase_action_branch"] or options["branches"]
    require("action_branch", branches, "true when --phrase_action_branch is false: a model needs one branch")
    if options["fusion_positions"] and options["cross_branch_fusion"] and options["deformable_attn"]:
        require("max_ctx_l", options["max_ctx_l"] <= 128, "at most 128 with --fusion_positions")
    published = options["action_branch"] or options["phrase_action_branch"]
    trained = published or edit_kinds(options)
    expected = "--action_branch or --phrase_action_branch on, or a branch with such edits"
    require("neg_query_loss", not options["neg_query_loss"] or bool(trained), expected)
    if options["neg_query_loss"] and options["neg_query_loss_branch"] != "both":
        flag = {"i3d": "action_branch", "clip": "phrase_action_branch"}[options["neg_query_loss_branch"]]
        require("neg_query_loss_branch", options[flag], f"a branch that is on (--{flag})")


def _check_losses(options: Mapping[str, Any], require: Callable[[str, bool, str], None]) -> None:
    names = options["losses"].split(",")
    named = set(names) <= set(loss_names()) and len(set(names)) == len(names)
    require("losses", named, f"some of {','.join(loss_names())}, separated by commas, each once")
    for name in loss_names():
        require(f"{name}_weight", 0 <= options[f"{name}_weight"] < float("inf"), "at least 0")
    for flag in ("nce_temperature", "soft_target_temperature"):
        require(flag, 0.001 <= options[flag] <= 100, "from 0.001 to 100")
    for flag in ("query_diverse_scale", "query_diverse_margin"):
        require(flag, 0 <= options[flag] <= 1000, "from 0 to 1000")
    if options["soft_targets"]:
        require("soft_targets", "cosine_nce" in names, "0 without cosine_nce in --losses")
        of_videos = options["soft_target_teacher"] == "videos"
        expected = "0 without the object branch (--phrase_action_branch), or --soft_target_teacher average"
        require("soft_targets", options["phrase_action_branch"] or not of_videos, expected)
    taught = options["ema"] > 0 and options["soft_targets"] > 0
    require(
        "soft_target_teacher",
        options["soft_target_teacher"] == "videos" or taught,
        "--ema and --soft_targets above 0 beside it",
    )
    trains = not options["only_eval"] and not options["eval_ckpt"]
    start, last = options["neg_query_start_epoch"], options["n_epoch"] - 1
    if options["neg_query_loss"] and start > last and trains:
        log.warning("--neg_query_start_epoch %d has no effect: the last epoch is %d", start, last)
    if OPTIMAL_MATCHING in names and trains and importlib.util.find_spec("scipy") is None:
        missing = "the package scipy is missing; run `pip install -r requirements-matching.txt`"
        raise InputError(f"--losses {options['losses']}: {missing}")


def check_branch_options(options: Mapping[str, Any], source: Path | str) -> None:
    """InputError for branches that no model can have together; `source` is where those of `--branches` are from."""
    branches = make_branches(options)
    try:
        check_branches(branches)
    except ValueError as error:
        raise InputError(f"{place_of_branches(source)}.{error}") from error
    idle = [name for name in options["branches"] if branches[name].attends_to]
    if idle and not options["cross_branch_fusion"]:
        log.warning("attends_to of %s has no effect without --cross_branch_fusion", ", ".join(idle))
    try:
        fused_weights(branches, fixed_fusion_weight(options))
    except ValueError as error:
        raise InputError(f"--fusion_weight {options['fusion_weight']}: {error}") from error
