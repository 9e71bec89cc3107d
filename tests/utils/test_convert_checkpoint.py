"""Checkpoints converted to the other form and back."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from method.model.published import unused_shapes
from method.runtime.errors import InputError
from method.training.checkpoint import load_model, model_content
from method.training.checkpoint_file import read_checkpoint, write_checkpoint
from tests.helpers.golden_case import CASES, SHAPES, golden_architecture, published_weights
from tests.helpers.small_dataset import own_log_handlers
from tests.helpers.small_models import lively_model
from utils import convert_checkpoint


def convert(arguments: Sequence[object]) -> None:
    with own_log_handlers():
        convert_checkpoint.main([str(argument) for argument in arguments])


def flags(case: str) -> list[str]:
    c = CASES[case]
    words = f"""--dataset_name activitynet --device -1 --phrase_action_branch --flow_feat --cross_branch_fusion
        --visual_feat_dim {c["i3d"]} --visual_flow_feat_dim {c["clip"]} --q_feat_size {c["q"]} --n_heads {c["n_heads"]}
        --hidden_size {c["hidden"]} --max_ctx_l {c["max_ctx_l"]} --max_desc_l {c["max_desc_l"]}
        --deformable_offset_scale {c["scale"]} --deformable_offset_num {c["offsets"]}
        --deformable_offset_groups {c["groups"]} --deformable_heads {c["heads"]} --cross_attn_q {c["dirn"]}"""
    return [*words.split(), "--deformable_attn" if c["deformable"] else "--no_deformable_attn"]


@pytest.mark.parametrize("case", CASES)
def test_published_to_ours_and_back_is_bit_equal(tmp_path: Path, case: str) -> None:
    weights = published_weights(case)
    published, ours, back = (tmp_path / f"{name}.ckpt" for name in ("published", "ours", "back"))
    write_checkpoint(published, {"model": weights, "epoch": 12, "opt": {"bsz": 128}})
    convert([published, ours, *flags(case)])
    loaded = load_model(ours, replace(golden_architecture(case), hidden_size=64))
    assert loaded.epoch == 12
    assert loaded.options is not None
    assert loaded.options["fusion_extent"] == loaded.model.architecture.fusion_extent == "padded"
    direct = load_model(published, golden_architecture(case)).model.state_dict()
    assert all(torch.equal(weight, direct[name]) for name, weight in loaded.model.state_dict().items())

    convert([ours, back])
    content = read_checkpoint(back)
    assert content["epoch"] == 12
    assert {name: list(weight.shape) for name, weight in content["model"].items()} == SHAPES[case]
    unused = unused_shapes(golden_architecture(case))
    for name, weight in content["model"].items():
        if name in unused:
            assert not weight.any()
        else:
            assert torch.equal(weight, weights[name]), name


@pytest.mark.parametrize(
    "changes", [{}, {"fusion_extent": "padded"}, {"fusion": "attention"}, {"fusion": "none"}], ids=str
)
def test_ours_to_published(tmp_path: Path, changes: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    model = lively_model(**changes)
    write_checkpoint(tmp_path / "ours.ckpt", model_content(model, 5, {"dataset_name": "demo"}))
    convert([tmp_path / "ours.ckpt", tmp_path / "published.ckpt"])
    assert any("valid" in message for message in caplog.messages) == (changes == {})
    read = load_model(tmp_path / "published.ckpt", model.architecture)
    assert (read.epoch, read.options) == (5, None)
    assert read.model.architecture == replace(model.architecture, fusion_extent="padded")
    for name, weight in model.state_dict().items():
        # The published program divides the scale of the logits by the root of the padded length.
        factor = model.architecture.max_frames**0.5 if name.endswith("logit_scale") and changes == {} else 1.0
        torch.testing.assert_close(read.model.state_dict()[name], weight * factor, atol=0, rtol=0)


@pytest.mark.parametrize(("options", "fitted", "needed"), [
    ({"fusion_weight": 0.5}, {}, ""), ({"fusion_weight": 0.3}, {}, "0.3"),
    ({"fusion_weight": "fitted"}, {"fusion_weight": 0.5}, ""),
    ({"fusion_weight": "fitted"}, {"fusion_weight": 0.85}, "0.85"),
])  # fmt: skip
def test_the_weight_that_is_lost_is_named(
    tmp_path: Path, options: dict[str, Any], fitted: dict[str, float], needed: str, caplog: pytest.LogCaptureFixture
) -> None:
    content = model_content(lively_model(), 5, {"dataset_name": "demo", **options}, fitted)
    write_checkpoint(tmp_path / "ours.ckpt", content)
    convert([tmp_path / "ours.ckpt", tmp_path / "published.ckpt"])
    warned = [message for message in caplog.messages if "--fusion_weight" in message]
    assert [message.split()[-1] for message in warned] == [needed] * bool(needed)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "ours.ckpt", model_content(lively_model(), 5, {"dataset_name": "demo"}))
    (tmp_path / "there.ckpt").write_text("precious")
    with pytest.raises(InputError, match=r"there\.ckpt: already exists"):
        convert([tmp_path / "ours.ckpt", tmp_path / "there.ckpt"])
    assert (tmp_path / "there.ckpt").read_text() == "precious"


def test_wrong_uses(tmp_path: Path) -> None:
    case = "activitynet_small"
    published = tmp_path / "published.ckpt"
    write_checkpoint(published, {"model": published_weights(case), "epoch": 1})
    with pytest.raises(InputError, match="--dataset_name is missing"):
        convert([published, tmp_path / "out.ckpt"])
    with pytest.raises(InputError, match="--fusion_weight fitted: expected a fraction from 0 to 1; only a training"):
        convert([published, tmp_path / "out.ckpt", *flags(case), "--fusion_weight", "fitted"])
    with pytest.raises(InputError, match="weights do not fit the options"):
        convert([published, tmp_path / "out.ckpt", *flags("ablation_transformer")])
    with pytest.raises(InputError, match=r"nowhere\.ckpt: no such file"):
        convert([tmp_path / "nowhere.ckpt", tmp_path / "out.ckpt"])
    assert not (tmp_path / "out.ckpt").exists()
