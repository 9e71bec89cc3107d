"""The model that the options describe: its branches, and the rest of its architecture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from method.config.yaml_values import BRANCH_FLAGS
from method.data.edits import KINDS, Kind
from method.data.features import ACTION_KEY, OBJECT_KEY
from method.model.architecture import Architecture, Fusion
from method.model.branch_spec import BranchSpec, two_branches


def make_architecture(options: Mapping[str, Any]) -> Architecture:
    """The architecture that the options describe."""
    fusion: Fusion = "none"
    if options["cross_branch_fusion"]:
        fusion = "deformable" if options["deformable_attn"] else "attention"
    return Architecture(
        branches=make_branches(options),
        query_width=options["q_feat_size"],
        hidden_size=options["hidden_size"],
        heads=options["n_heads"],
        max_frames=options["max_ctx_l"],
        max_words=options["max_desc_l"],
        input_dropout=options["input_drop"],
        dropout=options["drop"],
        initializer_range=options["initializer_range"],
        fusion=fusion,
        fusion_extent=options["fusion_extent"] or "valid",
        fusion_positions=options["fusion_positions"] and fusion == "deformable",
        fusion_heads=options["deformable_heads"] if fusion == "deformable" else options["cross_attn_head"],
        offset_groups=options["deformable_offset_groups"],
        offset_count=options["deformable_offset_num"],
        offset_kernel=options["deformable_offset_kernel_size"],
        temperatures=tuple(edit_kinds(options)),
        head=options["head"],
        clip_weight=options["clip_weight"],
        attention=options["attention"],
        registers=options["registers"],
        fusion_gradient=options["fusion_gradient"],
        query_weights=options["query_weights"],
        frame_drop=options["frame_drop"],
        token_drop=options["token_drop"],
        feature_noise=options["feature_noise"],
    )


def make_branches(options: Mapping[str, Any]) -> dict[str, BranchSpec]:
    """The branches that the published flags make, and after them those of `--branches`."""
    i3d, clip = (ACTION_KEY, options["visual_feat_dim"]), (OBJECT_KEY, options["visual_flow_feat_dim"])
    branches = two_branches(
        i3d if options["action_branch"] else None,
        (clip if options["flow_feat"] else i3d) if options["phrase_action_branch"] else None,
        options["cross_attn_q"] if options["cross_branch_fusion"] else None,
        options["deformable_offset_scale"],
    )
    for name, given in options["branches"].items():
        spec = {"offset_scale": options["deformable_offset_scale"], **given}
        spec.pop("edits", None)  # of the training
        branches[name] = BranchSpec(**spec)
    return branches


def edit_kinds(options: Mapping[str, Any]) -> dict[str, Kind]:
    """For each branch that is trained with hard negative queries, in order, the kind of edits that it gets.

    With both kinds, the action branch gets verbs and the object branch nouns; with one kind, both get that. A branch of
    `--branches` gets the kind that it names, if that is selected.
    """
    loss = options["neg_query_loss"]
    if loss is None:
        return {}
    chosen = {"i3d": KINDS[:1], "clip": KINDS[1:], "both": KINDS}[options["neg_query_loss_branch"]]
    kinds = {branch: branch if loss == "both" else loss for branch in chosen if options[BRANCH_FLAGS[branch]]}
    own = {name: spec.get("edits") for name, spec in options["branches"].items()}
    return kinds | {name: kind for name, kind in own.items() if kind and loss in (kind, "both")}
