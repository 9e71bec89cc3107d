"""Query features of one vector a caption, as CLIP's text encoder gives them: from the file to the metrics."""

from __future__ import annotations

import re
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml

from method.training.checkpoint_file import read_checkpoint
from tests.helpers.paths import REPOSITORY
from tests.helpers.small_dataset import SmallDataset, metrics, run_evaluate, run_train
from tests.test_docs import fences
from utils import check_dataset


def pool(small: SmallDataset, axes: int) -> None:
    """Replace the tokens of each caption by their mean, of shape (D,) or (1, D)."""
    with h5py.File(small.texts, "r+") as file:
        for caption in list(file):
            pooled_D = file[caption][()].mean(axis=0)
            del file[caption]
            file[caption] = pooled_D if axes == 1 else pooled_D[None]


def test_a_vector_and_a_single_row_give_the_same_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = {}
    for axes in (1, 2):
        small = SmallDataset(tmp_path / str(axes))
        pool(small, axes)
        check_dataset.main(["demo", *small.flags()[2:]])
        assert re.search(r"tokens a caption +median 1, longest 1 +median 1, longest 1", capsys.readouterr().out)
        runs[axes] = run_train(small.flags("--description", "pooled", "--save_scores"))
        assert (small.texts.with_name(f"{small.texts.name}.cache") / "tokens-5.rows").exists()
        again = run_evaluate(
            ["--eval_ckpt", str(runs[axes] / "model.ckpt"), "--device", "-1", "--feature_cache", "off"]
        )
        assert metrics(again) == metrics(runs[axes])
    one, other = (read_checkpoint(runs[axes] / "model.ckpt")["model"] for axes in (1, 2))
    assert all(torch.equal(weight, other[name]) for name, weight in one.items())
    with np.load(runs[1] / "scores.npz") as ours, np.load(runs[2] / "scores.npz") as theirs:
        assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
        assert len(np.unique(ours["fused"])) > 100  # captions differ


def test_the_documented_yaml_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = REPOSITORY / "docs" / "data.md"
    (example,) = (fence.code for fence in fences(page) if fence.language == "yaml" and "clip_text" in fence.code)
    (tmp_path / "mine.yaml").write_text(example)
    values = yaml.safe_load(example)
    assert (values["q_feat_size"], values["max_desc_l"]) == (512, 1)
    paths = {name: tmp_path / value for name, value in values.items() if isinstance(value, str) and "/" in value}
    paths["video_feat_path"].parent.mkdir(parents=True)
    random = np.random.default_rng(0)
    with h5py.File(paths["video_feat_path"], "w") as videos, h5py.File(paths["text_feat_path"], "w") as texts:
        for split in ("train", "test"):
            lines = []
            for number in range(4):
                video, caption = f"{split}{number}", f"{split}{number}#enc#0"
                videos[f"{video}/i3d_feat"] = random.standard_normal((3, values["visual_feat_dim"]))
                videos[f"{video}/clip_feat"] = random.standard_normal((2, values["visual_flow_feat_dim"]))
                texts[caption] = random.standard_normal(values["q_feat_size"])
                lines.append(f"{caption} a caption\n")
            paths[f"caption_{split}_txt"].write_text("".join(lines))
    monkeypatch.chdir(tmp_path)
    small = ["--hidden_size", "16", "--n_epoch", "1", "--num_workers", "0", "--device", "-1"]
    run = run_train(["--config", "mine.yaml", *small, "--description", "first"])
    assert metrics(run)["fused"]["r100"] == 100.0
