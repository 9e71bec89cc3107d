"""One branch and three from beginning to end: train, evaluate with a report, search, resume."""

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from method import search
from method.config import options as config
from tests.helpers.small_dataset import QUERY_WIDTH, SmallDataset, history, metrics, run_evaluate, run_train

SIZES = f"""base: base.yaml
video_feat_path: dataset/demo_i3d/FeatureData/demo_clip_i3d_numpy.hdf5
text_feat_path: dataset/demo_i3d/TextData/roberta_demo_query_feat.hdf5
caption_train_txt: dataset/demo_i3d/TextData/demotrain.caption.txt
caption_test_txt: dataset/demo_i3d/TextData/demoval.caption.txt
q_feat_size: {QUERY_WIDTH}
visual_feat_dim: 10
visual_flow_feat_dim: 6
hidden_size: 16
max_ctx_l: 12
deformable_offset_scale: 3
bsz: 5
num_workers: 0
"""
AUDIO_ONLY = """action_branch: false
phrase_action_branch: false
cross_branch_fusion: false
branches:
  audio: {key: audio_feat, width: 7}
"""
THREE = """cross_attn_q: double_q
branches:
  audio: {key: audio_feat, width: 7, attends_to: action, weight: 0.5}
"""


@pytest.mark.parametrize(("content", "names"), [(AUDIO_ONLY, ["audio"]), (THREE, ["action", "object", "audio"])])
def test_from_training_to_search(
    small: SmallDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    content: str, names: list[str],
) -> None:  # fmt: skip
    write_audio(small, monkeypatch, content)
    flags = ["--dataset_name", "mine", "--root_path", str(small.root), "--device", "-1", "--seed", "3"]
    whole = run_train([*flags, "--n_epoch", "2", "--description", "whole"])
    assert list(metrics(whole)) == [*names, "fused"]
    assert set(history(whole)[0]["losses"]) == {f"{name}/{loss}" for name in names for loss in ("triplet", "nce")}

    run = run_train([*flags, "--n_epoch", "1", "--description", "stopped"])
    run_train(["--resume", str(run), "--n_epoch", "2", "--root_path", str(small.root)])
    assert [row["epoch"] for row in history(run)] == [0, 1]
    (small.root / "configs" / "mine.yaml").write_text(SIZES)  # the checkpoint carries its branches

    checkpoint = ["--eval_ckpt", str(whole / "model.ckpt"), "--root_path", str(small.root)]
    evaluated = run_evaluate([*checkpoint, "--save_scores", "--report", "--description", "evaluated"])
    assert metrics(evaluated) == metrics(whole)
    page = (evaluated / "report" / "index.html").read_text("utf-8")
    assert all(name in page for name in names)
    with np.load(evaluated / "scores.npz") as scores:
        assert list(scores) == ["query_ids", "video_ids", *names, "fused"]
        fused = sum(scores[name] for name in names) / len(names)  # 0.5 each
        np.testing.assert_allclose(scores["fused"], fused, atol=1e-6)
        row = list(scores["query_ids"]).index("E00#enc#0")
        expected = dict(zip(scores["video_ids"], scores["fused"][row], strict=True))

    capsys.readouterr()
    search.main([*checkpoint, "--query_id", "E00#enc#0", "--json"])
    hits = json.loads(capsys.readouterr().out)["results"]
    assert set(hits[0]["scores"]) == {*names, "fused"}
    for hit in hits:
        assert hit["scores"]["fused"] == pytest.approx(expected[hit["video_id"]], abs=1e-5)


def write_audio(small: SmallDataset, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    """Give every video a third stream, and the dataset a YAML file of its own."""
    random = np.random.default_rng(4)
    with h5py.File(small.features, "r+") as videos:
        for number, video in enumerate(list(videos)):
            videos[f"{video}/audio_feat"] = random.standard_normal((9 + number % 8, 7)).astype("float32")
    configs = small.root / "configs"
    configs.mkdir()
    shutil.copy(config.CONFIGS / "base.yaml", configs)
    (configs / "mine.yaml").write_text(SIZES + content)
    monkeypatch.setattr(config, "CONFIGS", configs)
