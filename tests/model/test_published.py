"""Published checkpoints of every launch are read, and written with exactly the published names and shapes."""

import argparse
import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from easydict import EasyDict

from method.config.architecture import make_architecture
from method.config.options import read_options
from method.model.architecture import Architecture
from method.model.published import options_without_trace, published_architecture, to_published
from method.model.retrieval import RetrievalModel
from method.runtime.errors import InputError
from method.training.checkpoint import load_model
from method.training.checkpoint_file import write_checkpoint
from tests.helpers.golden_case import SHAPES, golden_architecture, published_weights
from tests.helpers.small_models import changed

SMALL_CASE = "activitynet_small"
LAUNCH = ["--phrase_action_branch", "--flow_feat", "--cross_branch_fusion", "--deformable_attn"]


def launch_architecture(case: str) -> Architecture:
    if not case.startswith("launch_"):
        return golden_architecture(case)
    options = read_options(["--dataset_name", case.removeprefix("launch_"), *LAUNCH])
    return make_architecture(options)


def numbered_weights(case: str) -> dict[str, torch.Tensor]:
    """Weights of the right shapes, each filled with a different number."""
    return {name: torch.full(shape, i / 7) for i, (name, shape) in enumerate(SHAPES[case].items(), 1)}


@pytest.mark.parametrize("case", SHAPES)
def test_published_checkpoints_of_every_launch(tmp_path: Path, case: str) -> None:
    beside = {
        "epoch": 41,
        "opt": EasyDict({"bsz": 128, "deep": {"lr": 2.5e-4}}),
        "args": argparse.Namespace(seed=666),
        "best": np.float64(171.5),
        "ranks": np.arange(3),
        "counts": {"queries": np.int64(3720)},
        "model_cfg": OrderedDict(hidden_size=384),
        "optimizer": {"state": {0: {"next_m": torch.ones(2)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]},
    }
    weights = {**numbered_weights(case), "roberta_model.embeddings.position_ids": torch.arange(4)[None]}
    write_checkpoint(tmp_path / "p.ckpt", {"model": weights, **beside})
    loaded = load_model(tmp_path / "p.ckpt", launch_architecture(case))
    assert (loaded.epoch, loaded.options) == (41, None)
    assert loaded.model.architecture.fusion_extent == "padded"
    back = to_published(loaded.model.state_dict(), loaded.model.architecture)
    assert {name: list(weight.shape) for name, weight in back.items()} == SHAPES[case]
    used = [name for name in back if torch.equal(back[name], weights[name])]
    assert len(used) == len(loaded.model.state_dict())
    assert all(not back[name].any() for name in back if name not in used)


@pytest.mark.parametrize("case", SHAPES)
def test_export_has_exactly_the_published_names_and_shapes(case: str) -> None:
    with torch.device("meta"):
        model = RetrievalModel(published_architecture(launch_architecture(case)))
    exported = to_published(model.state_dict(), model.architecture)
    assert {name: list(weight.shape) for name, weight in exported.items()} == SHAPES[case]


def published_file(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    weights = published_weights(SMALL_CASE)
    change(weights)
    write_checkpoint(folder / "p.ckpt", {"model": weights, "epoch": 1})
    return folder / "p.ckpt"


IGNORED = [
    "channel_proj.0.weight", "channel_proj_action.3.bias", "channel_proj_third.0.weight", "mapping_linear.1.weight",
    "mapping_linear_phrase_action.2.weight", "cross_branch_fusion_SA.ca.norm1.bias",
    "cross_branch_fusion_SB.anything", "cross_branch_fusion_B1.ca.ffn.0.weight", "roberta_model.encoder.layer.0.x",
]  # fmt: skip


def test_unused_published_weights_are_ignored(tmp_path: Path) -> None:
    for change in (
        lambda weights: [weights.pop(name, None) for name in IGNORED],
        lambda weights: weights.update({name: torch.full((2, 3), torch.nan) for name in IGNORED}),
    ):
        loaded = load_model(published_file(tmp_path, change), golden_architecture(SMALL_CASE))
        expected = published_weights(SMALL_CASE)["mapping_linear.0.weight"]
        assert torch.equal(loaded.model.branch("action").key.weight, expected)


@pytest.mark.parametrize("name", [
    "mapping_linear.0.weight", "temp", "temp2", "cross_branch_fusion_A1.scales_make_attn_diff",
    "query_encoder_phrase.self.key.bias", "frame_pos_embed_action.position_embeddings.weight",
])  # fmt: skip
def test_published_weights_of_wrong_shapes(tmp_path: Path, name: str) -> None:
    architecture = golden_architecture(SMALL_CASE)
    for change, message in (
        (lambda weights: weights.pop(name), f"{name} is missing"),
        (lambda weights: weights.update({name: torch.ones(5, 4, 3)}), rf"{name} is \(5, 4, 3\), expected \("),
        (lambda weights: weights.update({name: weights[name] * torch.inf}), "not finite as float32"),
    ):
        with pytest.raises(InputError, match=message):
            load_model(published_file(tmp_path, change), architecture)


@pytest.mark.parametrize("name", ["mapping_linear.3.weight", "mapping_linear_other.1.weight", "new.weight",
    "cross_branch_fusion_A1.extra", "cross_branch_fusion_SC.x", "my_roberta_model.x"])  # fmt: skip
def test_unknown_published_weights(tmp_path: Path, name: str) -> None:
    path = published_file(tmp_path, lambda weights: weights.update({name: torch.ones(1)}))
    with pytest.raises(InputError, match=f"{name} is not expected"):
        load_model(path, golden_architecture(SMALL_CASE))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model."])
def test_published_weights_of_a_wrapped_model(tmp_path: Path, prefix: str) -> None:
    weights = {prefix + name: weight for name, weight in published_weights(SMALL_CASE).items()}
    write_checkpoint(tmp_path / "p.ckpt", {"model": weights, "epoch": 1})
    if prefix == "model.":
        with pytest.raises(InputError, match=r"weights begin with 'model\.', expected names without it"):
            load_model(tmp_path / "p.ckpt", golden_architecture(SMALL_CASE))
        return
    loaded = load_model(tmp_path / "p.ckpt", golden_architecture(SMALL_CASE))
    expected = published_weights(SMALL_CASE)["mapping_linear.0.weight"]
    assert torch.equal(loaded.model.branch("action").key.weight, expected)


FIRST = "cross_branch_fusion_A1"
CONTRADICTIONS: list[tuple[dict[str, Any], str]] = [
    ({"action_width": 25}, r"--visual_feat_dim is 24 \(frame_input_proj.LayerNorm.weight\), expected 25"),
    ({"object_width": 24}, r"--visual_flow_feat_dim or --flow_feat is 16 \(frame_input_proj_action.LayerNorm.weight\), "
        "expected 24"),
    ({"query_width": 21}, r"--q_feat_size is 20 \(query_input_proj.LayerNorm.weight\), expected 21"),
    ({"max_frames": 25}, r"--max_ctx_l is 24 \(frame_pos_embed.position_embeddings.weight\), expected 25"),
    ({"max_words": 9}, r"--max_desc_l is 10 \(query_pos_embed.position_embeddings.weight\), expected 9"),
    ({"hidden_size": 64}, r"--hidden_size is 32 \(query_input_proj.net.1.weight\), expected 64"),
    ({"fusion": "none"}, rf"--cross_branch_fusion is True \({FIRST}\.\S+\), expected False; --deformable_attn.*"),
    ({"fusion": "attention"}, rf"--deformable_attn is True \({FIRST}\.to_offsets\.\S+\), expected False"),
    ({"fusion_positions": True}, rf"--fusion_positions is False \(no {FIRST}.pos_encoder_\*\), expected True"),
    ({"query": "double_q"}, r"--cross_attn_q double_q is False \(no \S+B1.to_offsets.\*\), expected True"),
    ({"offset_count": 5}, rf"--deformable_offset_num is 4 \({FIRST}.to_offsets.2.weight\), expected 5"),
    ({"offset_groups": 4}, rf"--deformable_offset_groups is 8 \({FIRST}.to_offsets.2.weight\), expected 4"),
    ({"offset_kernel": 5}, rf"--deformable_offset_kernel_size is 3 \({FIRST}.to_offsets.0.weight\), expected 5"),
    ({"object_width": None, "fusion": "none"}, "--phrase_action_branch is True .*, expected False; .*"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), CONTRADICTIONS, ids=[str(changes) for changes, _ in CONTRADICTIONS])
def test_options_that_the_weights_contradict(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = published_file(tmp_path, lambda weights: None)
    with pytest.raises(InputError, match=f"{re.escape(str(path))}: weights do not fit the options: {message}$"):
        load_model(path, changed(golden_architecture(SMALL_CASE), **changes))


@pytest.mark.parametrize("value", [-3.0, 0.0, 0.07, 1e4])
@pytest.mark.parametrize("name", ["temp", "temp2", "cross_branch_fusion_A1.scales_make_attn_diff"])
def test_implausible_temperatures_are_refused(tmp_path: Path, name: str, value: float) -> None:
    path = published_file(tmp_path, lambda weights: weights.update({name: torch.tensor(value)}))
    with pytest.raises(InputError, match=rf"p\.ckpt: {name} is {value:g}, expected 1 to 1000$"):
        load_model(path, golden_architecture(SMALL_CASE))


EVERYWHERE = {"n_heads", "fusion_weight", "eval_context_bsz", "text_layer", "text_special_tokens"}


@pytest.mark.parametrize(("changes", "expected"), [
    ({}, {"deformable_heads", "deformable_offset_scale", "cross_attn_q"}),
    ({"query": "double_q"}, {"deformable_heads", "deformable_offset_scale"}),
    ({"fusion": "attention"}, {"cross_attn_head", "cross_attn_q"}),
    ({"fusion": "none", "object_width": 24}, {"flow_feat"}),
], ids=["deformable", "both", "attention", "no fusion"])  # fmt: skip
def test_options_that_weights_do_not_show(changes: dict[str, Any], expected: set[str]) -> None:
    names = options_without_trace(changed(golden_architecture(SMALL_CASE), **changes))
    assert set(names) == expected | EVERYWHERE
