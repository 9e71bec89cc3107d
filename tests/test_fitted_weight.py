"""`--fusion_weight fitted`, from training to search."""

from __future__ import annotations

import json
import math
import shutil
import signal
from pathlib import Path

import pytest

from method import search
from method.runtime.errors import InputError, Stopped
from method.runtime.files import read_json
from method.training.checkpoint import stored_options
from method.training.checkpoint_file import read_checkpoint, write_checkpoint
from tests.helpers.runs import Interruption, assert_same_run, send
from tests.helpers.small_dataset import SmallDataset, history, metrics, own_log_handlers, run_evaluate, run_train
from utils import convert_checkpoint

FITTED = ["--fusion_weight", "fitted", "--n_epoch", "4"]


@pytest.fixture(scope="module")
def fitted(shared: SmallDataset) -> Path:
    """A run that is left as it is."""
    return run_train(shared.flags(*FITTED, "--description", "fitted"))


def test_each_evaluation_fits_a_weight_and_the_checkpoint_has_that_of_its_epoch(
    fitted: Path, shared: SmallDataset
) -> None:
    rows = history(fitted)
    weights = [row["fitted"]["fusion_weight"] for row in rows]
    assert len(set(weights)) > 1
    for row in rows:
        branches = [row["metrics"][name]["sumr"] for name in ("action", "object")]
        assert row["metrics"]["fused"]["sumr"] >= max(branches)
    result = read_json(fitted / "metrics.json")
    best = weights[result["epoch"]]
    assert result["weights"] == pytest.approx({"action": best, "object": 1 - best})
    assert metrics(fitted) == rows[result["epoch"]]["metrics"]
    assert read_checkpoint(fitted / "model.ckpt")["fitted"] == {"fusion_weight": best}
    assert read_checkpoint(fitted / "last.ckpt")["fitted"] == {"fusion_weight": weights[-1]}
    assert f"fusion weight {weights[-1]:.2f}" in (fitted / "train.log").read_text()
    fixed = run_train(shared.flags(*FITTED, "--fusion_weight", "0.5", "--description", "fixed"))
    losses = [[row["losses"] for row in history(run)] for run in (fitted, fixed)]
    assert losses[0] == losses[1]  # the weight is of the evaluation alone


def test_it_is_fitted_to_the_captions_that_select_the_epoch(
    shared: SmallDataset, caplog: pytest.LogCaptureFixture
) -> None:
    run = run_train(shared.flags(*FITTED, "--holdout_fraction", "0.4", "--description", "held out"))
    result = read_json(run / "metrics.json")
    best = history(run)[result["epoch"]]
    assert "the fusion weight is fitted to the held-out training videos" in caplog.messages
    assert metrics(run) != best["metrics"]  # of other videos
    assert result["weights"]["action"] == best["fitted"]["fusion_weight"]


@pytest.mark.parametrize("file", ["model.ckpt", "last.ckpt", "exported"])
def test_evaluation_and_search_use_it(
    fitted: Path, shared: SmallDataset, file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = fitted / file
    if file == "exported":
        path = tmp_path / file
        with own_log_handlers():
            convert_checkpoint.main([str(fitted / "model.ckpt"), "--safetensors", str(path), "--root_path", "."])
    given = ["--eval_ckpt", str(path), "--root_path", str(shared.root), "--device", "-1"]
    rows = history(fitted)
    epoch = -1 if file == "last.ckpt" else read_json(fitted / "metrics.json")["epoch"]
    run = run_evaluate([*given, "--save_scores"])
    assert metrics(run) == rows[epoch]["metrics"]
    weight = rows[epoch]["fitted"]["fusion_weight"]
    assert read_json(run / "opt.json")["fusion_weight"] == weight
    index = ["--index_dir", str(tmp_path / "index")]
    search.main([*given, *index, "--query_id", "E00#enc#0", "--json"])
    for hit in json.loads(capsys.readouterr().out)["results"]:
        scores = hit["scores"]
        assert hit["score"] == pytest.approx(weight * scores["action"] + (1 - weight) * scores["object"], abs=1e-5)


@pytest.mark.parametrize("found", [None, [1], {}, {"fusion_weight": "0.5"}, {"fusion_weight": math.nan},
                                   {"fusion_weight": 7.0}, {"fusion_weight": True}])  # fmt: skip
def test_a_damaged_weight_is_refused(fitted: Path, shared: SmallDataset, found: object) -> None:
    run = Path(shutil.copytree(fitted, fitted.with_name("damaged weight"), dirs_exist_ok=True))
    content = read_checkpoint(run / "model.ckpt")
    write_checkpoint(run / "model.ckpt", {**content, "fitted": found})
    message = r"damaged weight/model\.ckpt: expected the fitted fusion_weight, a fraction from 0 to 1, found"
    with pytest.raises(InputError, match=message):
        run_evaluate(["--eval_ckpt", str(run / "model.ckpt"), "--device", "-1"])
    with pytest.raises(InputError, match=message):
        run_train(["--resume", str(run), "--n_epoch", "5", "--device", "-1"])


def test_nothing_else_is_taken_from_what_was_fitted(fitted: Path, tmp_path: Path) -> None:
    content = read_checkpoint(fitted / "model.ckpt")
    write_checkpoint(tmp_path / "more.ckpt", {**content, "fitted": {**content["fitted"], "hidden_size": 512}})
    assert (stored_options(tmp_path / "more.ckpt") or {})["hidden_size"] == 16


def test_before_the_first_evaluation_both_branches_count_equally(shared: SmallDataset, interrupt: Interruption) -> None:
    interrupt.at(1, send(signal.SIGINT))
    with pytest.raises(Stopped):
        run_train(shared.flags(*FITTED, "--description", "stopped early"))
    interrupt.over()
    run = run_evaluate(["--eval_ckpt", str(shared.results / "stopped early" / "last.ckpt"), "--device", "-1"])
    assert read_json(run / "metrics.json")["weights"] == {"action": 0.5, "object": 0.5}


def test_a_stopped_run_fits_the_same(fitted: Path, shared: SmallDataset, interrupt: Interruption) -> None:
    interrupt.at(7, send(signal.SIGINT))
    with pytest.raises(Stopped):
        run_train(shared.flags(*FITTED, "--description", "fitted and stopped"))
    interrupt.over()
    assert_same_run(run_train(["--resume", str(fitted.parent / "fitted and stopped"), "--device", "-1"]), fitted)


def test_only_a_training_fits(fitted: Path, one_epoch: Path) -> None:
    for run in (fitted, one_epoch):
        with pytest.raises(InputError, match="--fusion_weight fitted: expected a fraction from 0 to 1; only a tr"):
            run_evaluate(["--eval_ckpt", str(run / "model.ckpt"), "--device", "-1", "--fusion_weight", "fitted"])
    assert read_checkpoint(one_epoch / "model.ckpt").get("fitted") is None


@pytest.mark.parametrize("value", ["best", "0.5x", ""])
def test_other_words_are_refused(shared: SmallDataset, value: str) -> None:
    with pytest.raises(InputError, match="--fusion_weight: expected a number or fitted, found"):
        run_train(shared.flags("--fusion_weight", value))
