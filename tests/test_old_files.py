"""Checkpoints and runs of an earlier version, whose models had fields for two branches instead of a table of branches.

`data_files/` holds what revision 1887516 wrote for the tiny dataset: an evaluated model with deformable fusion, and a
run without fusion and dropout that was stopped in its third epoch, beside the history of the same run without a stop.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from method.training.checkpoint_file import read_checkpoint
from tests.helpers.small_dataset import SmallDataset, history, run_evaluate, run_train

FILES = Path(__file__).parent / "data_files"


def test_a_model_of_two_branches_gives_the_same_scores(shared: SmallDataset) -> None:
    checkpoint = FILES / "two_branches" / "model.ckpt"
    assert "action_width" in read_checkpoint(checkpoint)["architecture"]
    flags = ["--root_path", str(shared.root), "--description", "old model", "--save_scores"]
    run = run_evaluate(["--eval_ckpt", str(checkpoint), *flags])
    with np.load(FILES / "two_branches" / "scores.npz") as expected, np.load(run / "scores.npz") as found:
        assert list(found) == list(expected)
        for name in ("action", "object", "fused"):
            np.testing.assert_allclose(found[name], expected[name], atol=1e-6)


def test_a_run_of_two_branches_is_resumed(small: SmallDataset, caplog: pytest.LogCaptureFixture) -> None:
    run = small.results / "stopped"
    shutil.copytree(FILES / "stopped_run", run, ignore=shutil.ignore_patterns("unbroken.jsonl"))
    assert run_train(["--resume", str(run), "--root_path", str(small.root)]) == run
    unbroken = [json.loads(line) for line in (FILES / "stopped_run" / "unbroken.jsonl").read_text().splitlines()]
    assert [row["metrics"] for row in history(run)] == [row["metrics"] for row in unbroken]
    for found, expected in zip(history(run), unbroken, strict=True):
        assert found["losses"] == pytest.approx(expected["losses"], rel=1e-4)
