"""Whole trainings on a tiny dataset, in this process: what they leave, and what decides what comes out."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from method.data.captions import read_captions
from method.data.splits import split_holdout
from method.evaluation.bounds import duplicates
from method.evaluation.metrics import retrieval_metrics
from method.evaluation.ranks_file import read_ranks
from method.runtime.files import read_json, sha256
from method.training.checkpoint_file import read_checkpoint
from tests.helpers import reference_model
from tests.helpers.runs import EPOCHS, assert_same_run
from tests.helpers.small_dataset import SmallDataset, history, metrics, run_evaluate, run_train

# What a run leaves


def test_outputs(shared: SmallDataset, finished: Path) -> None:
    assert finished == shared.results / "finished"
    names = {"opt.json", "model.ckpt", "last.ckpt", "train.log", "history.jsonl", "metrics.json", "tensorboard"}
    assert names | {"ranks.csv", "scores.npz", ".lock"} == {path.name for path in finished.iterdir()}
    assert any(path.name.startswith("events") for path in (finished / "tensorboard").iterdir())
    options = read_json(finished / "opt.json")
    assert (options["hidden_size"], options["n_epoch"], options["dataset_name"]) == (16, EPOCHS, "demo")
    log = (finished / "train.log").read_text()
    assert "epoch 2: loss" in log
    assert "metrics in" in log
    assert "95% intervals over captions" in log
    assert "the better branch for each caption" in log


def test_metrics_say_what_they_are_of(shared: SmallDataset, finished: Path) -> None:
    content = read_json(finished / "metrics.json")
    assert (content["videos"], content["queries"]) == (8, 20)
    figures = ["r1", "r5", "r10", "r100", "sumr", "medr", "meanr", "map"]
    for name in ("action", "object", "fused"):
        assert list(content[name]) == figures
    assert content["checkpoint"] == {"path": str(finished / "model.ckpt"), "sha256": sha256(finished / "model.ckpt")}
    assert content["options"] == read_json(finished / "opt.json")
    assert {"python", "torch", "numpy", "h5py", "git"} <= set(content["environment"])
    assert list(content["intervals"]) == ["about", "action", "object", "fused"]
    assert {"level": 0.95, "resamples": 10_000, "seed": 0, "videos": 8}.items() <= content["intervals"]["about"].items()
    for name in ("action", "object", "fused"):
        for key, (low, high) in content["intervals"][name].items():
            assert low <= content[name][key] <= high
    assert content["bounds"]["duplicates"]["captions"] == duplicates(shared.captions()).captions > 0
    assert content["bounds"]["best_branch"]["sumr"] >= max(content[name]["sumr"] for name in ("action", "object"))
    assert content["epoch"] == read_checkpoint(finished / "model.ckpt")["epoch"]


def test_history_has_a_line_for_each_epoch_and_the_best_is_kept(finished: Path) -> None:
    rows = history(finished)
    assert [row["epoch"] for row in rows] == list(range(EPOCHS))
    for row in rows:
        assert set(row["losses"]) == {"action/triplet", "action/nce", "object/triplet", "object/nce"}
        assert all(math.isfinite(value) for value in row["losses"].values())
    best = max(rows, key=lambda row: (row["metrics"]["fused"]["sumr"], row["epoch"]))
    assert read_json(finished / "metrics.json")["epoch"] == best["epoch"]
    assert metrics(finished) == best["metrics"]


def test_scores_give_the_metrics(shared: SmallDataset, finished: Path) -> None:
    with np.load(finished / "scores.npz") as file:
        scores = dict(file)
    captions = shared.captions()
    assert scores["query_ids"].tolist() == [caption.id for caption in captions]
    videos = scores["video_ids"].tolist()
    assert videos == shared.videos_of(shared.test_txt)
    for name, expected in metrics(finished).items():
        rows = torch.from_numpy(scores[name])
        assert rows.shape == (20, 8)
        ranks = [reference_model.rank_of(row, videos.index(c.video_id)) for row, c in zip(rows, captions, strict=True)]
        assert retrieval_metrics(np.array(ranks)) == expected
        assert read_ranks(finished / "ranks.csv").ranks[name].tolist() == ranks
    np.testing.assert_allclose(scores["fused"], 0.5 * scores["action"] + 0.5 * scores["object"], rtol=0, atol=1e-6)


def test_training_learns(shared: SmallDataset) -> None:
    flags = "--n_epoch 15 --max_es_cnt -1 --lr 3e-3 --drop 0 --input_drop 0 --initializer_range 0.1 --description long"
    losses = [sum(row["losses"].values()) for row in history(run_train(shared.flags(*flags.split())))]
    assert sum(losses[-3:]) < 0.75 * sum(losses[:3])  # 0.3 to 0.65 with other seeds


# Nothing but the options decides


@pytest.mark.parametrize("workers", [0, 2])
def test_two_runs_agree_to_the_last_bit(shared: SmallDataset, finished: Path, workers: int) -> None:
    flags = ["--n_epoch", str(EPOCHS), "--description", f"workers{workers}", "--num_workers", str(workers)]
    assert_same_run(run_train(shared.flags(*flags)), finished)


# Selecting the epoch


def test_a_share_of_the_training_videos_can_select_the_epoch(
    shared: SmallDataset, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    flags = ["--holdout_fraction", "0.25", "--n_epoch", str(EPOCHS), "--description", "holdout"]
    run = run_train(shared.flags(*flags))
    assert "training split: 9 videos, 22 captions" in caplog.messages
    assert "held-out training videos: 3 videos, 8 captions" in caplog.messages
    assert "the epoch is selected on the held-out training videos" in caplog.messages
    content = read_json(run / "metrics.json")
    assert (content["videos"], content["queries"]) == (8, 20)
    rows = history(run)
    best = max(rows, key=lambda row: (row["metrics"]["fused"]["sumr"], row["epoch"]))
    assert content["epoch"] == best["epoch"]

    held_out = split_holdout(read_captions(shared.train_txt), 0.25, seed=7)[1]
    path = shared.root / "held_out.txt"
    path.write_text("".join(f"{caption.id} {caption.text}\n" for caption in held_out))
    alone = run_evaluate(["--eval_ckpt", str(run / "model.ckpt"), "--device", "-1", "--caption_test_txt", str(path)])
    assert metrics(alone) == best["metrics"]
    reported = run_evaluate(["--eval_ckpt", str(run / "model.ckpt"), "--device", "-1"])
    assert metrics(reported) == metrics(run)


def test_the_reported_split_selects_by_default_and_the_log_says_so(
    shared: SmallDataset, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    run_train(shared.flags("--n_epoch", "1", "--description", "default"))
    assert "the epoch is selected on the evaluated split" in caplog.messages


# Options of the training


OPTIONS = """cross_attn_q clip_q; cross_attn_q double_q; no_deformable_attn; no_cross_branch_fusion
no_deformable_attn --cross_attn_q double_q --cross_attn_head 2; no_cross_branch_fusion --no_action_branch
no_cross_branch_fusion --no_phrase_action_branch; no_flow_feat; fusion_positions
fusion_extent padded; deformable_offset_kernel_size 5; deformable_offset_scale 1; amp bf16; amp fp16; grad_clip 0.01
amp fp16 --grad_clip 1; hard_negative_start_epoch 0 --hard_pool_size 2; bsz 1; bsz 100; drop 0.5; input_drop 0.5
drop 0 --input_drop 0; wd 0.5; wd 0 --lr_warmup_proportion 0; lr_warmup_proportion 0.5; margin 0.5
initializer_range 0.1; max_ctx_l 4; max_desc_l 2; seed 8; lr_schedule cosine; lr_schedule constant"""


@pytest.mark.parametrize("option", OPTIONS.replace("\n", "; ").split("; "))
def test_every_option_of_training_changes_what_is_learned(shared: SmallDataset, one_epoch: Path, option: str) -> None:
    flags = f"--{option}".split()
    run = run_train(shared.flags(*flags, "--n_epoch", "1", "--exp_id", "options", "--description", option))
    row = history(run)[0]
    assert len(row["losses"]) == (2 if "no_action" in option or "no_phrase" in option else 4)
    assert all(math.isfinite(value) for value in row["losses"].values())
    assert row["losses"] != history(one_epoch)[0]["losses"]
    assert metrics(run) == row["metrics"]


def test_debug_is_two_epochs_of_two_steps(shared: SmallDataset) -> None:
    run = run_train(shared.flags("--debug", "--n_epoch", "50", "--bsz", "2", "--description", "debug"))
    assert len(history(run)) == 2
    assert read_checkpoint(run / "last.ckpt")["optimizer"]["param_groups"][0]["step"] == 4
    assert read_json(run / "metrics.json")["videos"] == 8


def test_a_dataset_whose_yaml_file_is_elsewhere(small: SmallDataset) -> None:
    """A run stores its values: evaluation and resuming do not need the file."""
    path = small.root / "mine.yaml"
    files = {"video_feat_path": small.features, "text_feat_path": small.texts}
    files |= {"caption_train_txt": small.train_txt, "caption_test_txt": small.test_txt}
    path.write_text("base: base.yaml\n" + "".join(f"{name}: {file}\n" for name, file in files.items()))
    flags = small.flags("--config", "mine.yaml", "--n_epoch", "1")
    assert flags[:2] == ["--dataset_name", "demo"]
    run = run_train(flags[2:])
    assert run.parent == small.root / "results" / "mine" / "a3prvr"
    path.unlink()
    evaluated = run_evaluate(["--eval_ckpt", str(run / "model.ckpt"), "--device", "-1"])
    assert (evaluated.parent, metrics(evaluated)) == (run.parent, metrics(run))
    assert run_train(["--resume", str(run), "--device", "-1", "--n_epoch", "2"]) == run
    assert len(history(run)) == 2


# Losses beyond the default


def test_a_training_with_every_loss(shared: SmallDataset) -> None:
    of_branches = ("query_diverse", "text_structure", "optimal_matching")
    flags = ["--losses", ",".join(["triplet,nce,cosine_nce", *of_branches]), "--fused_loss", "instead",
        "--false_negatives", "similar", "--similar_from", "0.5", "--soft_targets", "0.3",
        "--hard_negative_start_epoch", "1", "--n_epoch", "2", "--amp", "bf16"]  # fmt: skip
    run = run_train(shared.flags("--description", "every loss", *flags))
    for row in history(run):
        assert set(row["losses"]) == {"fused/triplet", "fused/nce", "fused/cosine_nce"} | {
            f"{branch}/{name}" for branch in ("action", "object") for name in of_branches
        }
        assert all(math.isfinite(value) and value > 0 for value in row["losses"].values())
