"""The published name of each of our weights.

The published names mislead: `_phrase`, `_action` and `phrase_action` all mean the object branch.
"""

from __future__ import annotations

from collections.abc import Mapping

from method.model.architecture import Architecture

TEMPERATURES = {"action": "temp", "object": "temp2"}
_ENCODER = {
    "input_norm": "input_proj{s}.LayerNorm",
    "input": "input_proj{s}.net.1",
    "positions": "pos_embed{s}.position_embeddings",
    "position_norm": "pos_embed{s}.LayerNorm",
    "attention.query": "encoder{s}.self.query",
    "attention.key": "encoder{s}.self.key",
    "attention.value": "encoder{s}.self.value",
    "attention.output": "encoder{s}.output.dense",
    "attention.norm": "encoder{s}.output.LayerNorm",
}
ATTENTION_FUSION = {
    "query": "ca.msa.linears.0",
    "key": "ca.msa.linears.1",
    "value": "ca.msa.linears.2",
    "output": "ca.msa.linears.3",
    "feed_forward.attended_norm": "ca.norm1",
    "feed_forward.inner": "ca.ffn.0",
    "feed_forward.outer": "ca.ffn.3",
    "feed_forward.output_norm": "ca.norm2",
}
_DEFORMABLE_FUSION = {
    "to_query.first": "to_q.0",
    "to_query.second": "to_q.3",
    "to_key.first": "to_k.0",
    "to_key.second": "to_k.3",
    "to_value.first": "to_v.0",
    "to_value.second": "to_v.3",
    "offset_convolution": "to_offsets.0",
    "offset_output": "to_offsets.2",
    "logit_scale": "scales_make_attn_diff",
    "query_positions.table": "pos_encoder_Q.0",
    "query_positions.norm": "pos_encoder_Q.1",
    "context_positions.table": "pos_encoder_KV.0",
    "context_positions.norm": "pos_encoder_KV.1",
    "feed_forward.attended_norm": "norm1",
    "feed_forward.inner": "ffn.0",
    "feed_forward.outer": "ffn.3",
    "feed_forward.output_norm": "norm2",
}
FIRST_FUSION, SECOND_FUSION = "cross_branch_fusion_A1", "cross_branch_fusion_B1"


def published_name(ours: str, architecture: Architecture) -> str:
    """The published name of one of our weights."""
    kind, which, rest = ours.split(".", 2) if ours.count(".") > 1 else (*ours.split(".", 1), "")
    if kind == "temperatures":
        return TEMPERATURES[which]
    if kind == "fusions":
        names = _DEFORMABLE_FUSION if architecture.fusion == "deformable" else ATTENTION_FUSION
        return f"{fusion_prefixes(architecture)[which]}.{renamed(rest, names)}"
    part, _, rest = rest.partition(".")
    if part == "pooling":
        return {"action": "modular_vector_mapping.weight", "object": "modular_vector_mapping_phrase.weight"}[which]
    if part == "key":
        return {"action": "mapping_linear.0.weight", "object": "mapping_linear_phrase_action.0.weight"}[which]
    side, suffix = {"frames": ("frame", "_action"), "tokens": ("query", "_phrase")}[part]
    return f"{side}_{renamed(rest, _ENCODER).format(s=suffix if which == 'object' else '')}"


def fusion_prefixes(architecture: Architecture) -> dict[str, str]:
    """The published name of the fusion of each branch: the first has one name, whichever branch it is of."""
    return dict(zip(architecture.fusions, (FIRST_FUSION, SECOND_FUSION), strict=False))


def renamed(ours: str, names: Mapping[str, str]) -> str:
    """Rename the module of a weight and keep its last part, or rename a parameter of its own."""
    if ours in names:
        return names[ours]
    module, _, parameter = ours.rpartition(".")
    return f"{names[module]}.{parameter}"
