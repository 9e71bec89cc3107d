"""Flags: that each does something, how they are written, and that the published command lines work as they are."""

import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest
from easydict import EasyDict

from method.config.architecture import make_architecture
from method.config.flags import make_parser
from method.config.options import read_options
from tests.helpers.paths import REPOSITORY

FLAGS = {action.dest for action in make_parser("")._actions} - {"help"}


def read(*arguments: str) -> EasyDict:
    return read_options(["--dataset_name", "demo", *arguments])


def test_every_flag_has_help_and_a_type() -> None:
    for action in make_parser("")._actions:
        assert action.help, action.dest
        default = action.default
        if isinstance(default, int | float) and not isinstance(default, bool):
            assert callable(action.type), action.dest
            assert type(action.type(str(default))) is type(default), action.dest


@pytest.mark.parametrize(("arguments", "expected"), [
    ([], True), (["--flow_feat"], True), (["--flow_feat", "true"], True), (["--flow_feat", "False"], False),
    (["--flow_feat", "0"], False), (["--no_flow_feat"], False), (["--flow_feat", "--no_flow_feat"], False),
    (["--no_flow_feat", "--flow_feat"], True), (["--no_flow_feat", "false"], True),
])  # fmt: skip
def test_switches(arguments: list[str], expected: bool) -> None:
    assert read(*arguments).flow_feat is expected  # of the YAML, if there is no flag


@pytest.mark.parametrize(("arguments", "expected"), [
    ([], None), (["--feature_cache", "off"], "off"), (["--feature_cache", "False"], "off"),
    (["--feature_cache", "/scratch/cache"], Path("/scratch/cache")),
    (["--feature_cache", "off/on"], Path.cwd() / "off/on"),
])  # fmt: skip
def test_where_the_feature_cache_lies(arguments: list[str], expected: Path | str | None) -> None:
    assert read(*arguments).feature_cache == expected


def test_no_pin_memory() -> None:
    assert read().pin_memory is True
    assert read("--no_pin_memory").pin_memory is False


def test_both_names_of_the_dataset() -> None:
    assert read_options(["--dset_name", "charades"]).dataset_name == "charades"


# The published command lines


PUBLISHED = """--dataset_name charades --dset_name charades --visual_feature i3d_rgb_lgi --exp_id runs_0
--root_path ROOT --device_ids 0 --topk 1 5 10 100 --caption_train_txt dataset/train.txt
--caption_test_txt dataset/val.txt
--text_feat_path dataset/text.hdf5 --best_frame_loss --phrase_action_branch --flow_feat --cross_branch_fusion
--deformable_attn --deformable_heads 8 --deformable_offset_groups 8 --deformable_offset_num 8
--deformable_offset_scale 12 --visual_feat_dim 1024 --visual_flow_feat_dim 512 --q_feat_size 1024 --margin 0.2
--bsz 128 --seed 666 --num_workers 8 --description first --neg_query_loss both --neg_query_loss_weight 0.005
--neg_action_num 8 --neg_object_num 8 --neg_query_loss_branch both --neg_loss_label_smoothing 0.2 --only_eval
--eval_ckpt checkpoints/charades.ckpt --lr 2.5e-4 --lr_warmup_proportion 0.01 --wd 0.01 --n_epoch 100 --max_es_cnt 10
--grad_clip -1 --eval_query_bsz 50 --eval_context_bsz 200 --hard_negative_start_epoch 20 --hard_pool_size 20
--max_desc_l 30 --max_ctx_l 128 --hidden_size 384 --n_heads 4 --input_drop 0.1 --drop 0.1 --initializer_range 0.02
--fusion_weight 0.5 --cross_attn_head 4 --cross_attn_q i3d_q --deformable_offset_kernel_size 3 --results_root results
--no_pin_memory --debug --device -1"""


def test_a_published_command_line_with_every_flag(tmp_path: Path) -> None:
    options = read_options(PUBLISHED.replace("ROOT", str(tmp_path)).split())
    assert options.eval_ckpt == tmp_path / "checkpoints" / "charades.ckpt"
    assert options.caption_train_txt == tmp_path / "dataset" / "train.txt"
    assert options.id_action_dict == tmp_path / "dataset/charades_i3d/TextData/charades_id_action_dict.json"
    assert (options.grad_clip, options.lr, options.device, options.pin_memory) == (-1.0, 2.5e-4, -1, False)
    architecture = make_architecture(options)
    assert (architecture.fusion, architecture.fusion_positions, architecture.streams["object"]) == (
        "deformable",
        True,
        ("clip_feat", 512),
    )
    assert architecture.temperatures == ("action", "object")


def test_ignored_flags_are_said_once_each(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        read("--topk", "1", "5", "--visual_feature", "x", "--best_frame_loss")
        assert sorted(caplog.messages) == [
            "--topk is accepted and ignored, as in the published code",
            "--visual_feature is accepted and ignored, as in the published code",
        ]
        caplog.clear()
        read("--bsz", "3")
    assert not caplog.records


def test_help_from_another_folder(tmp_path: Path) -> None:
    command = [sys.executable, str(REPOSITORY / "method" / "train.py"), "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    named = set(re.findall(r"--(\w+)", done.stdout))
    assert FLAGS | {"dset_name", "no_pin_memory", "no_flow_feat"} <= named
    assert "(default: 0.00025)" in done.stdout
    assert "(default: None)" not in done.stdout
