"""Means over seeds: which runs count, how they are grouped, and the numbers."""

from __future__ import annotations

import csv
import io
import statistics
from pathlib import Path
from typing import Any

import pytest

from method.config.options import plain, read_options
from method.runtime.errors import InputError
from method.runtime.files import write_json
from utils.summarize_runs import main

BEFORE = plain(read_options(["--dataset_name", "demo"]))


def write_run(folder: Path, recall: float, *, finished: bool = True, epoch: int = 3, **options: Any) -> Path:
    """A run whose recalls are all the same, and 1 higher under the action score."""
    options = {**BEFORE, **options}
    write_json(folder / "opt.json", options)
    if finished:
        scores = {
            name: {**dict.fromkeys(("r1", "r5", "r10", "r100"), value), "sumr": 4 * value}
            for name, value in (("action", recall + 1), ("fused", recall))
        }
        write_json(folder / "metrics.json", {"epoch": epoch, "videos": 9, "queries": 20, **scores, "options": options})
    return folder


def rows_of(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> list[dict[str, str]]:
    main([*map(str, arguments), "--format", "csv"])
    return list(csv.DictReader(io.StringIO(capsys.readouterr().out)))


def test_one_row_for_each_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = [20.0, 23.5, 21.0]
    for seed, value in enumerate(values):
        folder = tmp_path / "demo" / "a3prvr" / f"run{seed}"
        write_run(folder, value, epoch=10 + seed, seed=seed, description=f"run{seed}", root_path=f"/machine{seed}")
    write_run(tmp_path / "demo" / "a3prvr" / "wide", 30.0, seed=0, hidden_size=512)
    narrow, wide = rows_of(capsys, tmp_path)
    assert (narrow["configuration"], narrow["runs"]) == ("hidden_size=64", "3")
    assert (narrow["seeds"], narrow["epochs"]) == ("0 1 2", "10 11 12")
    assert float(narrow["r1_mean"]) == pytest.approx(statistics.mean(values))
    assert float(narrow["r1_sd"]) == pytest.approx(statistics.stdev(values))
    assert float(narrow["sumr_sd"]) == pytest.approx(4 * statistics.stdev(values))
    assert (wide["configuration"], wide["runs"], wide["r1_mean"], wide["r1_sd"]) == ("hidden_size=512", "1", "30.0", "")
    main([str(tmp_path)])
    shown = capsys.readouterr().out
    assert "hidden_size=64      3   10–12  21.5 ± 1.8" in shown
    assert "hidden_size=512     1       3        30.0 " in shown
    assert "best epoch by fused SumR is reported, selected on the evaluated split itself, as published" in shown
    main([str(tmp_path), "--format", "latex"])
    assert r"hidden\_size=64 & 3 & 10--12 & 21.5 $\pm$ 1.8 &" in capsys.readouterr().out
    assert float(rows_of(capsys, tmp_path, "--score", "action")[1]["r1_mean"]) == 31.0


def test_what_differs_makes_the_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = write_run(tmp_path / "one", 20.0)
    assert [row["configuration"] for row in rows_of(capsys, one)] == ["demo"]
    write_run(tmp_path / "two", 20.0, exp_id="patched", cross_branch_fusion=False, neg_query_loss="both", num_workers=9)
    assert [row["configuration"] for row in rows_of(capsys, one, tmp_path)] == [
        "exp_id=a3prvr, cross_branch_fusion=true, neg_query_loss=null",
        "exp_id=patched, cross_branch_fusion=false, neg_query_loss=both",
    ]


def test_rows_of_several_datasets_have_the_dataset_and_what_differs_within(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "demo", 20.0, multi_gt="labels.jsonl", multi_gt_subset=True)
    write_run(tmp_path / "demo2", 21.0, seed=2)
    of_tvr = plain(read_options(["--dataset_name", "tvr"]))
    write_run(tmp_path / "tvr", 20.0, **of_tvr)
    write_run(tmp_path / "wide", 20.0, **{**of_tvr, "hidden_size": 512})
    assert [(row["configuration"], row["runs"]) for row in rows_of(capsys, tmp_path)] == [
        ("demo", "2"),
        ("tvr, hidden_size=384", "1"),
        ("tvr, hidden_size=512", "1"),
    ]


def test_runs_of_before_an_option_had_its_default(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "new", 20.0, seed=1)
    old = write_run(tmp_path / "old", 22.0, seed=2)
    options = {name: value for name, value in BEFORE.items() if name not in ("head", "triplet_weight")}
    content = {"epoch": 1, "videos": 9, "queries": 20, "options": {**options, "seed": 2}}
    write_json(old / "metrics.json", content | {"fused": dict.fromkeys(("r1", "r5", "r10", "r100", "sumr"), 22.0)})
    assert [row["runs"] for row in rows_of(capsys, tmp_path)] == ["2"]


def test_what_is_no_independent_finished_training_is_listed_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "good", 20.0, seed=1)
    write_run(tmp_path / "good" / "n_epoch_5", 99.0)  # an archive has no options of its own
    (tmp_path / "good" / "n_epoch_5" / "opt.json").unlink()
    write_run(tmp_path / "again", 20.0, seed=2)
    write_run(tmp_path / "again_2", 24.0, seed=2)
    write_run(tmp_path / "stopped", 0.0, finished=False, seed=3)
    write_run(tmp_path / "evaluated", 50.0, seed=1, eval_ckpt="good/model.ckpt")
    write_json(write_run(tmp_path / "foreign", 0.0) / "metrics.json", {"epoch": 1})
    (write_run(tmp_path / "torn", 0.0) / "metrics.json").write_text('{"epoch"')
    main([str(tmp_path), str(tmp_path / "good")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:4] == ["demo", "2", "3", "20.0"]
    left_out = sorted(line.removeprefix("left out: ") for line in lines if line.startswith("left out"))
    assert [line.split(": ")[0].removeprefix(f"{tmp_path}/") for line in left_out] == [
        *("again_2", "evaluated", "foreign/metrics.json", "stopped", "torn/metrics.json"),
    ]
    assert f"seed 2 again, as in {tmp_path / 'again'}" in left_out[0]
    assert "an evaluation of a checkpoint" in left_out[1]
    assert "no 'options'" in left_out[2]
    assert "unfinished" in left_out[3]
    assert "not valid JSON" in left_out[4]
    main([str(tmp_path), "--evaluations"])
    shown = capsys.readouterr().out
    assert "demo              1       3  50.0" in shown
    assert "each run is the evaluation of one checkpoint" in shown
    assert "good: a training" in shown


def test_other_captions_or_selections_are_other_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "a", 20.0, seed=1)
    write_run(tmp_path / "b", 22.0, seed=2, holdout_fraction=0.1)
    content = {"epoch": 1, "videos": 9, "queries": 19, "options": {**BEFORE, "seed": 3}}
    write_json(
        write_run(tmp_path / "c", 0.0, seed=3) / "metrics.json",
        content | {"fused": dict.fromkeys(("r1", "r5", "r10", "r100", "sumr"), 22.0)},
    )
    main([str(tmp_path)])
    shown = capsys.readouterr().out
    assert "holdout_fraction=0.1, captions=20" in shown
    assert "holdout_fraction=0.0, captions=19" in shown
    assert "held-out training videos if holdout_fraction is above 0, else on the evaluated split itself" in shown


def test_nothing_to_summarize(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty: no runs in it, expected folders with opt\.json"):
        main([str(tmp_path / "empty")])
    with pytest.raises(InputError, match="nowhere: expected a folder, found nothing"):
        main([str(tmp_path / "nowhere")])
    write_run(tmp_path / "run", 0.0, finished=False)
    with pytest.raises(InputError, match=r"no finished training to summarize: .*run: unfinished"):
        main([str(tmp_path)])
    write_run(tmp_path / "run", 0.0)
    with pytest.raises(InputError, match=r"no finished training .*metrics\.json: .*\(no 'audio'\)"):
        main([str(tmp_path), "--score", "audio"])
