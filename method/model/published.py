"""Published checkpoints: their weights read into ours and written back, and what they tell of the options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from method.model.architecture import Architecture
from method.model.published_names import (
    ATTENTION_FUSION,
    FIRST_FUSION,
    SECOND_FUSION,
    TEMPERATURES,
    fusion_prefixes,
    published_name,
    renamed,
)
from method.model.retrieval import RetrievalModel
from method.runtime.errors import InputError, summarize

_NEVER_USED: tuple[str, ...] = (
    *("channel_proj", "cross_branch_fusion_SA.", "cross_branch_fusion_SB.", "roberta_model."),
    *(f"mapping_linear{branch}.{layer}." for branch in ("", "_phrase_action") for layer in (1, 2)),
)
# What the shapes of published weights tell of the options: a size, or whether there are weights of this beginning.
_SIZES = {
    "visual_feat_dim": ("frame_input_proj.LayerNorm.weight", 0),
    "visual_flow_feat_dim or --flow_feat": ("frame_input_proj_action.LayerNorm.weight", 0),
    "q_feat_size": ("query_input_proj.LayerNorm.weight", 0),
    "hidden_size": ("query_input_proj.net.1.weight", 0),
    "max_ctx_l": ("frame_pos_embed.position_embeddings.weight", 0),
    "max_desc_l": ("query_pos_embed.position_embeddings.weight", 0),
    "deformable_offset_num": (f"{FIRST_FUSION}.to_offsets.2.weight", 0),
    "deformable_offset_kernel_size": (f"{FIRST_FUSION}.to_offsets.0.weight", 2),
}
_OFFSET_CHANNELS = (f"{FIRST_FUSION}.to_offsets.2.weight", 1)  # of one of the groups
_PARTS = {
    "action_branch": "frame_input_proj.",
    "phrase_action_branch": "frame_input_proj_action.",
    "cross_branch_fusion": f"{FIRST_FUSION}.",
    "deformable_attn": f"{FIRST_FUSION}.to_offsets.",
    "fusion_positions": f"{FIRST_FUSION}.pos_encoder_",
    "cross_attn_q double_q": f"{SECOND_FUSION}.to_offsets.",
}
# The temperatures start at 1/0.07 and the scale of the logits at 70; a training moves them by a few units.
_LEAST_SCALE, _LARGEST_SCALE = 1.0, 1000.0
_CHANNEL_PROJECTION_WIDTH = 1024  # written into the published program, whatever the features' width


def is_published(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has the published names."""
    return any(name.startswith(("query_input_proj", "frame_input_proj")) for name in state)


def published_architecture(architecture: Architecture) -> Architecture:
    """The architecture that a published checkpoint of these options has: padded, with a temperature a branch."""
    return replace(
        architecture,
        fusion_extent="padded",
        temperatures=tuple(architecture.branches),
        head="frames",
        attention="plain",
        registers=0,
        query_weights=False,
    )


def check_publishable(architecture: Architecture, source: Path | str) -> None:
    """InputError for a model with branches or a head that the published form cannot hold."""
    if own := [name for name in architecture.branches if name not in TEMPERATURES]:
        raise InputError(f"{source}: a published checkpoint has the branches action and object, not {', '.join(own)}")
    if architecture.head != "frames":
        raise InputError(f"{source}: a published checkpoint has the head frames, not {architecture.head}")
    if architecture.attention != "plain" or architecture.registers:
        found = architecture.attention if architecture.attention != "plain" else f"{architecture.registers} registers"
        raise InputError(f"{source}: a published checkpoint has plain attention without registers, not {found}")
    if architecture.query_weights:
        raise InputError(f"{source}: a published checkpoint has fixed weights of the branches, not those of the query")


def from_published(state: Mapping[str, Tensor], architecture: Architecture, source: str) -> dict[str, Tensor]:
    """Rename published weights to ours.

    Args:
        state: published name -> weight.
        architecture: what the options say the weights are.
        source: name of the file, for errors.

    Raises:
        InputError: listing the options that the weights contradict, or else every name that is missing, unknown or of
            another shape than the architecture's.
    """
    check_publishable(architecture, source)
    shapes = {name: weight.shape for name, weight in _meta_model(architecture).state_dict().items()}
    published_of = {ours: published_name(ours, architecture) for ours in shapes}
    expected = _visible_options({published_of[ours]: shape for ours, shape in shapes.items()})
    found = _visible_options({name: weight.shape for name, weight in state.items()})
    if contradictions := [
        f"--{option} is {value} ({where}), expected {expected[option][0]}"
        for option, (value, where) in found.items()
        if option in expected and expected[option][0] != value
    ]:
        raise InputError(f"{source}: weights do not fit the options: {'; '.join(contradictions)}")
    unused = _NEVER_USED if len(fusion_prefixes(architecture)) == 2 else (*_NEVER_USED, f"{SECOND_FUSION}.")
    problems = [f"{name} is missing" for name in published_of.values() if name not in state]
    known = set(published_of.values()) | set(TEMPERATURES.values())
    problems += [f"{name} is not expected" for name in state if name not in known and not name.startswith(unused)]
    problems += [
        f"{name} is {tuple(state[name].shape)}, expected {tuple(shapes[ours])}"
        for ours, name in published_of.items()
        if name in state and state[name].shape != shapes[ours]
    ]
    if problems:
        raise InputError(f"{source}: weights do not fit the options: {summarize(problems, shown=len(problems))}")
    return {ours: state[name] for ours, name in published_of.items()}


def _visible_options(shapes: Mapping[str, Sequence[int]]) -> dict[str, tuple[int | bool, str]]:
    """The options that the shapes of published weights show, each with its value and where it is seen."""

    def size(name: str, dimension: int) -> int | None:
        return shapes[name][dimension] if name in shapes and len(shapes[name]) > dimension else None

    visible: dict[str, tuple[int | bool, str]] = {}
    for option, (name, dimension) in _SIZES.items():
        if (value := size(name, dimension)) is not None:
            visible[option] = value, name
    channels = size(*_OFFSET_CHANNELS)
    if channels and "hidden_size" in visible:
        visible["deformable_offset_groups"] = visible["hidden_size"][0] // channels, _OFFSET_CHANNELS[0]
    for option, prefix in _PARTS.items():
        names = [name for name in shapes if name.startswith(prefix)]
        visible[option] = bool(names), names[0] if names else f"no {prefix}*"
    return visible


def options_without_trace(architecture: Architecture) -> list[str]:
    """Names of the options that scores depend on and that cannot be read off the weights of a published checkpoint."""
    names = ["n_heads"]
    if architecture.fusion == "deformable":
        names += ["deformable_heads", "deformable_offset_scale"]
        names += ["cross_attn_q"] if len(architecture.fusions) == 1 else []
    if architecture.fusion == "attention":
        names += ["cross_attn_head", "cross_attn_q"]
    widths = [spec.width for spec in architecture.branches.values()]
    if len(widths) == 2 and len(set(widths)) == 1:
        names.append("flow_feat")
    return [*names, "fusion_weight", "eval_context_bsz", "text_layer", "text_special_tokens"]


def check_scales(weights: Mapping[str, Tensor], architecture: Architecture, source: str) -> None:
    """InputError for a temperature or a scale of logits, of weights with our names, that no training arrives at."""
    for ours, weight in weights.items():
        is_scale = ours.startswith("temperatures.") or ours.endswith(".logit_scale")
        if is_scale and not _LEAST_SCALE <= weight.item() <= _LARGEST_SCALE:
            raise InputError(
                f"{source}: {published_name(ours, architecture)} is {weight.item():.6g}, "
                f"expected {_LEAST_SCALE:g} to {_LARGEST_SCALE:g}"
            )


def to_published(state: Mapping[str, Tensor], architecture: Architecture) -> dict[str, Tensor]:
    """Rename our weights to the published names, and add those that the published program has and never uses.

    The latter are zeros. A logit scale learned with extent 'valid' is given the factor by which the published program
    divides it at full length. InputError for branches or a head that the published program does not have.
    """
    check_publishable(architecture, "the model")
    weights = {published_name(ours, architecture): weight for ours, weight in state.items()}
    if architecture.fusion_extent == "valid":
        for prefix in fusion_prefixes(architecture).values():
            name = f"{prefix}.scales_make_attn_diff"
            if name in weights:
                weights[name] = weights[name] * architecture.max_frames**0.5
    for name in TEMPERATURES.values():
        weights.setdefault(name, torch.tensor(1 / 0.07))
    for name, shape in unused_shapes(architecture).items():
        weights[name] = torch.zeros(shape)
    return weights


def unused_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights that the published program has and never uses."""
    width = architecture.hidden_size
    object_ = architecture.branches.get("object")
    shapes: dict[str, tuple[int, ...]] = {}
    inputs = {
        "": (_CHANNEL_PROJECTION_WIDTH, "mapping_linear"),
        "_action": (object_.width if object_ else None, "mapping_linear_phrase_action"),
    }
    for suffix, (input_width, mapping) in inputs.items():
        if input_width is None:
            continue
        for layer, columns in ((0, input_width), (3, width)):
            shapes[f"channel_proj{suffix}.{layer}.weight"] = (width, columns)
            shapes[f"channel_proj{suffix}.{layer}.bias"] = (width,)
        shapes.update({f"{mapping}.{n}.weight": (width, width) for n in (1, 2)})
    if architecture.fusion == "none":
        return shapes
    idle = ["cross_branch_fusion_SA", "cross_branch_fusion_SB"]
    idle += [SECOND_FUSION] if len(fusion_prefixes(architecture)) == 1 else []
    attention = next(iter(_meta_model(replace(architecture, fusion="attention")).fusions.values()))
    for prefix in idle:
        for ours, weight in attention.state_dict().items():
            shapes[f"{prefix}.{renamed(ours, ATTENTION_FUSION)}"] = tuple(weight.shape)
    return shapes


def _meta_model(architecture: Architecture) -> RetrievalModel:
    with torch.device("meta"):
        return RetrievalModel(architecture)
