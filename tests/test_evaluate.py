"""A checkpoint evaluated on its own gives the metrics of its training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from method.runtime.errors import InputError
from method.runtime.files import read_json
from tests.helpers.small_dataset import SmallDataset, metrics, run_evaluate, run_train


def test_every_way_to_evaluate_gives_the_metrics_of_the_training(
    shared: SmallDataset, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint = str(finished / "model.ckpt")
    alone = run_evaluate(["--eval_ckpt", checkpoint, "--device", "-1", "--save_scores"])
    only_eval = run_train(["--only_eval", "--eval_ckpt", checkpoint, "--device", "-1"])
    published_style = run_train(shared.flags("--only_eval", "--eval_ckpt", checkpoint))
    for run in (alone, only_eval, published_style):
        assert run.parent == finished.parent
        assert run != finished
        assert metrics(run) == metrics(finished)
        content, trained = read_json(run / "metrics.json"), read_json(finished / "metrics.json")
        assert content["checkpoint"]["sha256"] == trained["checkpoint"]["sha256"]
        assert (content["epoch"], content["videos"], content["queries"]) == (trained["epoch"], 8, 20)
    assert len({alone, only_eval, published_style}) == 3
    with np.load(alone / "scores.npz") as ours, np.load(finished / "scores.npz") as theirs:
        assert set(ours) == set(theirs)
        assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_evaluation_leaves_the_checkpoint_and_its_run_alone(finished: Path) -> None:
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in finished.rglob("*")}
    run_evaluate(["--eval_ckpt", str(finished / "model.ckpt"), "--device", "-1"])
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in finished.rglob("*")} == before


def test_flags_may_choose_how_to_evaluate(finished: Path) -> None:
    checkpoint = ["--eval_ckpt", str(finished / "model.ckpt"), "--device", "-1", "--save_scores"]
    scores = {}
    for weight in ("0", "0.25", "1"):
        run = run_evaluate([*checkpoint, "--fusion_weight", weight, "--eval_context_bsz", "8", "--eval_memory_mb", "1"])
        with np.load(run / "scores.npz") as file:
            scores[weight] = dict(file)
    action, object_ = (scores["1"][name] for name in ("action", "object"))
    np.testing.assert_array_equal(scores["0"]["fused"], object_)
    np.testing.assert_array_equal(scores["1"]["fused"], action)
    np.testing.assert_allclose(scores["0.25"]["fused"], 0.25 * action + 0.75 * object_, atol=1e-7)


def test_what_the_checkpoint_decides_is_said(finished: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = ["--eval_ckpt", str(finished / "model.ckpt"), "--device", "-1"]
    run_evaluate(checkpoint)
    assert not [message for message in caplog.messages if "from the checkpoint" in message]
    run = run_evaluate([*checkpoint, "--fusion_extent", "padded", "--drop", "0.3"])
    assert "using fusion_extent=valid from the checkpoint (command line: padded)" in caplog.messages
    assert metrics(run) == metrics(finished)


def test_evaluate_needs_a_checkpoint(shared: SmallDataset) -> None:
    with pytest.raises(InputError, match="--eval_ckpt FILE or --zero_shot is missing"):
        run_evaluate(shared.flags())
    with pytest.raises(InputError, match=r"nowhere\.ckpt: no such file"):
        run_evaluate(shared.flags("--eval_ckpt", "nowhere.ckpt"))
