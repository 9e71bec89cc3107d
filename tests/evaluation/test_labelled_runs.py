"""Labels with several right videos, and moments, in the results of a training and of an evaluation."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from method.config.options import read_options
from method.runtime.errors import InputError
from method.runtime.files import read_json
from tests.evaluation.test_multi_gt import KEYS, naive_metrics
from tests.helpers.small_dataset import SmallDataset, history, metrics, run_evaluate, run_train
from utils.print_metrics import main as print_metrics

VCMR = {f"r{k}_iou{least}" for k in (1, 10, 100) for least in (0.3, 0.5, 0.7)}


def expected_of(run: Path, right: dict[str, list[str]]) -> dict[str, Any]:
    """The metrics of each score, from the stored scores by the definitions."""
    with np.load(run / "scores.npz") as file:
        index_of = {name: index for index, name in enumerate(file["video_ids"].tolist())}
        own = [[index_of[video] for video in right.get(name, [])] for name in file["query_ids"].tolist()]
        return {name: naive_metrics(file[name].tolist(), own) for name in ("action", "object", "fused")}


def test_an_evaluation_with_labels_and_moments(
    shared: SmallDataset, finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: Any,
) -> None:  # fmt: skip
    labels, moments = shared.write_labels(tmp_path / "labels"), shared.write_moments(tmp_path / "moments")
    files = ["--multi_gt", str(labels), "--moments", str(moments), "--save_scores", "--report"]
    run = run_evaluate(["--eval_ckpt", str(finished / "model.ckpt"), "--device", "-1", *files])
    content = read_json(run / "metrics.json")
    assert metrics(run) == metrics(finished)
    several = content["multi_gt"]
    assert (several.pop("captions"), several.pop("left_out")) == (20, 0)
    assert [list(values) for values in several.values()] == [KEYS] * 3
    for name, values in expected_of(run, shared.right_videos()).items():
        assert several[name] == pytest.approx(values)
    assert content["vcmr"].keys() >= VCMR
    assert content["vcmr"]["captions"] == content["moments"]["captions"] == 20
    assert content["vcmr"]["r1_iou0.3"] <= content["vcmr"]["r100_iou0.3"] > 0
    said = [message for message in caplog.messages if "several right videos" in message]
    assert len(said) == 2  # what the labels are, and the result
    assert f"SumR {several['fused']['sumr']:5.1f}" in said[1]
    assert sum("video corpus moment retrieval: R@1" in message for message in caplog.messages) == 1

    page = " ".join((run / "report" / "index.html").read_text().split())
    assert "<h3 id=\"several\">Several right videos</h3>" in page  # fmt: skip
    wide = [table for table in re.findall(r"<table(.*?)</thead>", page, re.DOTALL) if table.count("<th ") > 8]
    assert wide
    assert all(table.startswith(' class="wide"') for table in wide)  # else it does not fit on a page
    assert "<h3 id=\"vcmr\">Video corpus moment retrieval</h3>" in page  # fmt: skip
    right = shared.right_videos()
    with (run / "report" / "worst_captions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["winner_is_right"] for row in rows} == {"yes", "no"}
    assert all((row["winner_is_right"] == "yes") == (row["winner"] in right[row["caption_id"]]) for row in rows)
    also_right = sum(row["winner_is_right"] == "yes" for row in rows)
    assert page.count("right too, by the labels") == also_right
    assert f"{also_right} of the {len(rows)} winners shown are right too" in page

    print_metrics([str(run / "metrics.json")])
    printed = capsys.readouterr().out
    assert "several right videos, 20 captions" in printed
    assert "moments of all videos, 20 captions" in printed


def test_captions_without_labels_are_left_out_if_asked(shared: SmallDataset, one_epoch: Path, tmp_path: Path) -> None:
    labels = shared.write_labels(tmp_path / "labels", skip=5)
    arguments = ["--eval_ckpt", str(one_epoch / "model.ckpt"), "--device", "-1", "--multi_gt", str(labels)]
    with pytest.raises(InputError, match=r"labels: no line for 5 of the 20 evaluated captions"):
        run_evaluate(arguments)
    run = run_evaluate([*arguments, "--multi_gt_subset", "--save_scores"])
    several = read_json(run / "metrics.json")["multi_gt"]
    assert (several["captions"], several["left_out"]) == (15, 5)
    right = dict(list(shared.right_videos().items())[5:])
    for name, values in expected_of(run, right).items():
        assert several[name] == pytest.approx(values)


@pytest.mark.parametrize("holdout", [False, True])
def test_a_training_with_labels(shared: SmallDataset, tmp_path: Path, holdout: bool) -> None:
    """Labels change no step and no choice. Held-out training videos have none, so that only the result shows them."""
    labels = shared.write_labels(tmp_path / "labels")
    name = f"labelled {holdout}"
    more = ["--holdout_fraction", "0.3"] if holdout else []
    run = run_train(shared.flags("--description", name, "--save_scores", "--multi_gt", str(labels), *more))
    several = read_json(run / "metrics.json")["multi_gt"]
    for score, values in expected_of(run, shared.right_videos()).items():
        assert several[score] == pytest.approx(values)
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    logged = [tag for tag in events.Tags()["scalars"] if tag.startswith("multi_gt/")]
    assert logged == ([] if holdout else [f"multi_gt/{key}" for key in KEYS])
    if not holdout:
        plain = run_train(shared.flags("--description", f"plain {holdout}"))
        assert [row["losses"] for row in history(run)] == [row["losses"] for row in history(plain)]
        assert metrics(run) == metrics(plain)
        # The checkpoint keeps the path, as it does that of the moments: a file that is gone is only said.
        labels.unlink()
        again = run_evaluate(["--eval_ckpt", str(run / "model.ckpt"), "--device", "-1"])
        assert "multi_gt" not in read_json(again / "metrics.json")


def test_the_yaml_file_of_a_dataset_may_name_labels_or_none(shared: SmallDataset, tmp_path: Path) -> None:
    assert read_options(["--dataset_name", "charades"]).multi_gt is None
    config = tmp_path / "mine.yaml"
    config.write_text("base: base.yaml\nmulti_gt: labels.jsonl\nmulti_gt_subset: true\n")
    options = read_options(["--config", str(config), "--root_path", str(tmp_path)])
    assert (options.multi_gt, options.multi_gt_subset) == (tmp_path / "labels.jsonl", True)
    config.write_text("base: base.yaml\nlr: null\n")
    with pytest.raises(InputError, match="lr: expected one value, found None"):
        read_options(["--config", str(config)])
