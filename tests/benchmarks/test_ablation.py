"""Ablations: continued after a kill, and tables that agree with a calculation by hand."""

from __future__ import annotations

import shlex
import signal
import statistics
from pathlib import Path

import pytest

from benchmarks import ablation
from method.runtime.errors import InputError, PeerFailed, Stopped
from method.runtime.files import read_json
from tests.helpers.runs import STEPS, Interruption, assert_same_run, crash, send
from tests.helpers.small_dataset import SmallDataset, run_train
from tests.helpers.trainings import InThisProcess
from utils.runs import trainings
from utils.runs.ablation_table import Key, Result, ablation_table, read_result, with_error
from utils.runs.configurations import configurations, read_changes

CHANGES = "slow: {lr: 0.001}\naverage: {ema: 0.5}\n"


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The seeds of the trainings that are started, which run in this process."""
    InThisProcess.seeds = []
    monkeypatch.setattr(trainings, "Popen", InThisProcess)
    return InThisProcess.seeds


@pytest.fixture
def words(shared: SmallDataset, tmp_path: Path) -> list[str]:
    """The command line of an ablation on the tiny dataset, without the flags of its trainings."""
    (tmp_path / "changes.yaml").write_text(CHANGES)
    (tmp_path / "mine.yaml").write_text("ema: 0.5\nlr: 0.02\n")
    flags = shared.flags("--n_epoch", "1", "--save_every_steps", "1")
    place = flags.index("--seed")
    del flags[place : place + 2]
    world = f"tiny={shared.root} {shlex.join(flags)}"
    files = ["--changes", str(tmp_path / "changes.yaml"), "--recipe", str(tmp_path / "mine.yaml")]
    return ["--world", world, *files, "--out", str(tmp_path / "out"), "--seeds", "1 2"]


def sumr_of(run: Path, score: str = "fused") -> float:
    return float(read_json(run / "metrics.json")[score]["sumr"])


def test_killed_and_continued(
    words: list[str], started: list[str], interrupt: Interruption, shared: SmallDataset, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    words += ["--only", "mine without slow"]
    runs = tmp_path / "out" / "runs" / "tiny" / "demo"
    interrupt.at(STEPS + 1, crash)  # within the second training
    with pytest.raises(PeerFailed, match=r"error: 1 of 4 runs failed: mine without slow tiny 1$"):
        ablation.main(words)
    assert started == ["1", "1", "2", "2"]
    interrupt.over()
    before = {path: path.stat().st_mtime_ns for path in runs.glob("*/*/metrics.json")}
    assert len(before) == 3
    started.clear()
    capsys.readouterr()
    ablation.main(words)
    assert started == ["1"]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    alone = run_train(shared.flags("--n_epoch", "1", "--holdout_fraction", "0.1", "--ema", "0.5", "--seed", "1",
                                   "--description", "alone in no ablation"))  # fmt: skip
    assert_same_run(runs / "mine without slow" / "seed1", alone)

    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == [
        "configuration",
        "world",
        "runs",
        "SumR",
        "action",
        "object",
        "more",
        "than",
        "published",
        "time",
    ]
    for line, name in zip(lines[1:3], ("published", "mine without slow"), strict=True):
        own = [runs / name / f"seed{seed}" for seed in (1, 2)]
        mean, deviation = statistics.mean(map(sumr_of, own)), statistics.stdev(map(sumr_of, own))
        branches = [statistics.mean(sumr_of(run, score) for run in own) for score in ("action", "object")]
        expected = f"{name} tiny 2 {mean:.1f} ± {deviation:.1f} {branches[0]:.1f} {branches[1]:.1f} "
        assert " ".join(line.split()).startswith(expected)
    markdown = (tmp_path / "out" / "table.md").read_text()
    assert "| published | tiny | 2 |" in markdown
    with pytest.raises(InputError, match=r"tiny/demo/published/seed1: a resumed .*--lr was .* choose another --out$"):
        ablation.main([*words, "--", "--lr", "0.5"])


def test_a_stop_starts_no_further_training(words: list[str], started: list[str], interrupt: Interruption) -> None:
    interrupt.at(1, send(signal.SIGTERM))
    with pytest.raises(Stopped, match="stopped; the same command continues") as stopped:
        ablation.main(words)
    assert stopped.value.signal == signal.SIGTERM
    assert started == ["1"]


@pytest.mark.parametrize(("more", "message"), [
    (["--only", "slow", "nix"], "--only nix: expected some of published, slow, average, mine, mine without average,"),
    (["--", "--seed", "3"], "--seed: --seeds chooses the seeds"),
    (["--jobs", "0"], "--jobs 0: expected at least 1"),
    (["--world", "a/b=/"], "--world a/b=/: expected NAME=FOLDER"),
    (["--world", "a="], "--world a=: expected NAME=FOLDER"),
    (["--world", "tiny=/"], "--world: two have the same name"),
    (["--world", "b=/nowhere --dataset_name demo"], "published, world b: --root_path /nowhere: no such folder"),
    (["--world", "b=/ --dataset_name demo --lr x"], "published, world b: argument --lr: invalid float value"),
    (["--changes", "nowhere.yaml"], r"nowhere\.yaml: no such file"),
    (["--recipe", "none"], "--recipe none: expected one of published, plus, or"),
])  # fmt: skip
def test_what_is_refused_before_anything_starts(
    words: list[str], started: list[str], more: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        ablation.main([*words, *more])
    assert started == []


def test_a_recipe_keeps_a_part_that_others_need(
    words: list[str], started: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    keys: list[Key] = []

    def train(self: ablation.Ablation, given: list[Key], jobs: int) -> dict[Key, int]:
        keys.extend(given)
        return {}

    monkeypatch.setattr(ablation.Ablation, "train", train)
    (tmp_path / "mine.yaml").write_text("fused_loss: beside\nquery_weights: true\nlr: 0.02\n")
    ablation.main(words)
    names = ["published", "slow", "average", "mine", "mine without query_weights", "mine without slow"]
    assert list(dict.fromkeys(key.configuration for key in keys)) == names
    left_out = "left out: mine without fused_loss, world tiny: --query_weights True: expected two branches and"
    assert left_out in caplog.text
    with pytest.raises(InputError, match=r"^mine without fused_loss, world tiny: --query_weights True"):
        ablation.main([*words, "--only", "mine without fused_loss"])


@pytest.mark.parametrize(("content", "message"), [
    ("a: 1\n", "expected 'name: {flag: value}' for each change"),
    ("a/b: {lr: 1}\n", "expected 'name: {flag: value}'"),
    ("[]\n", "expected 'name: {flag: value}'"),
    ("a: {emma: 1}\n", "a, world tiny: unrecognized arguments: --emma=1"),
    ("published: {lr: 1}\n", "change published: the name of a recipe"),
    ("mine: {lr: 1}\n", "change mine: the name of a recipe"),
])  # fmt: skip
def test_wrong_changes(words: list[str], started: list[str], tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "changes.yaml").write_text(content)
    with pytest.raises(InputError, match=message):
        ablation.main(words)
    assert started == []


def test_a_recipe_of_one_part_is_not_taken_apart() -> None:
    assert [*configurations({}, "plus", {"ema": 0.9})] == ["published", "plus"]
    assert [*configurations(read_changes(ablation.CHANGES), "none", {})][-1] == "none"


def test_the_table_against_a_calculation_by_hand() -> None:
    sumr = {
        ("published", "A"): [10.0, 20.0, 30.0], ("published", "B"): [100.0, 110.0],
        ("more", "A"): [11.0, 24.0], ("more", "B"): [100.0],
    }  # fmt: skip
    results = {
        Key(name, world, seed): Result(
            {"action": value / 2, "object": value / 4, "fused": value}, 2.0 + (name == "more")
        )
        for (name, world), values in sumr.items()
        for seed, value in enumerate(values)
    }
    results[Key("single", "A", 7)] = Result({"action": 1.0, "fused": 2.0}, 1.0)  # no such run of the baseline
    table = ablation_table(results, "published")
    assert [list(map(str, row)) for row in table.rows] == [
        ["published", "A", "3", "20.0 ± 10.0", "10.0", "5.0", "–", "–"],
        ["published", "B", "2", "105.0 ± 7.1", "52.5", "26.2", "–", "–"],
        ["published", "all", "5", "54.0", "27.0", "13.5", "–", "–"],
        ["more", "A", "2", "17.5 ± 9.2", "8.8", "4.4", "+2.5 ± 1.5", "1.50"],  # of 1 and 4
        ["more", "B", "1", "100.0", "50.0", "25.0", "+0.0", "1.50"],
        ["more", "all", "3", "45.0", "22.5", "11.2", "+1.7 ± 1.2", "1.50"],  # of 1, 4 and 0: 2.08 / sqrt(3)
        ["single", "A", "1", "2.0", "1.0", "–", "–", "–"],
        ["single", "all", "1", "2.0", "1.0", "–", "–", "–"],
    ]
    assert with_error([1.0, 4.0, 0.0]) == "+1.7 ± 1.2"


def test_a_table_of_trainings_that_take_no_time() -> None:
    """On a tiny world: the log rounds 0.04 s to 0.0 s."""
    results = {Key(name, "A", 1): Result({"fused": 3.0}, 0.0) for name in ("published", "more")}
    assert ablation_table(results, "published").rows[1] == ["more", "A", 1, "3.0", "+0.0", "–"]


def test_the_minutes_of_a_run(one_epoch: Path, tmp_path: Path) -> None:
    assert read_result(one_epoch).sumr["fused"] == sumr_of(one_epoch)
    assert read_result(one_epoch).minutes > 0
    (tmp_path / "metrics.json").write_text('{"fused": {"sumr": 1.5}, "epoch": 3}')
    line = "00:00:00 epoch {}: loss 0.1, R@1 1.0, the best so far (training {} s, evaluation 9.0 s)\n"
    log = [line.format(*own) for own in ((0, 30.0), (1, 20.0), (1, 60.5))]  # epoch 1 was repeated
    (tmp_path / "train.log").write_text("".join(log) + "resuming\n")
    assert read_result(tmp_path) == Result({"fused": 1.5}, 90.5 / 60)
    (tmp_path / "metrics.json").write_text('{"action": {"sumr": 1.5}}')
    with pytest.raises(InputError, match=r"metrics\.json: not the metrics of a run \(no fused\)"):
        read_result(tmp_path)
