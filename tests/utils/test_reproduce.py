"""The table of published numbers, and the program that compares with it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from method.evaluation.metrics import RECALLS
from method.runtime.errors import InputError
from method.runtime.files import read_json
from tests.helpers.golden_case import published_weights
from tests.helpers.paths import REPOSITORY
from tests.test_released_checkpoints import Released, architecture
from utils import reproduce
from utils.download_data import HUB_REPOSITORY, RELEASES

TABLE = read_json(reproduce.RESULTS)
PAGE = (REPOSITORY / "docs" / "results.md").read_text("utf-8")
ROWS = [(name, row) for name, dataset in TABLE["datasets"].items() for row in dataset["rows"]]


@pytest.mark.parametrize("name", TABLE["datasets"])
def test_the_page_has_the_table(name: str) -> None:
    dataset = TABLE["datasets"][name]
    section = PAGE.split(f"\n## {dataset['title'].split(' (')[0]}\n")[1].split("\n## ")[0]
    table = "\n".join(line for line in section.splitlines() if line.startswith("|"))
    assert table == reproduce.markdown_table(dataset["rows"])


@pytest.mark.parametrize(("name", "row"), ROWS, ids=[f"{name}-{row['method']}" for name, row in ROWS])
def test_a_number_has_a_source_and_recalls_add_up(name: str, row: dict[str, Any]) -> None:
    numbers = [row[key] for key in RECALLS]
    if None in numbers:
        assert numbers == [None] * len(numbers)
    else:
        assert row["source"]
        assert numbers[:4] == sorted(numbers[:4])
        assert sum(numbers[:4]) == pytest.approx(numbers[4], abs=0.25)  # five rounded numbers


def test_each_released_dataset_has_the_rows_of_this_program() -> None:
    for name in RELEASES:
        kinds = [row["kind"] for row in TABLE["datasets"][name]["rows"] if "kind" in row]
        assert kinds == ["published", "released", "trained"]


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a download gives: a tiny dataset of Charades' widths and a checkpoint in the released form."""
    case = Released("charades", tmp_path / "hub", architecture("charades"), published_weights("launch_charades"))
    case.write()
    (text,) = case.root.rglob("charadestrain.caption.txt")
    text.write_text("V0#enc#0 a man runs\n")

    def download(name: str, root: Path, **settings: Any) -> None:
        assert settings == {"checkpoint": True, "repo": HUB_REPOSITORY, "revision": "main"}
        if not (root / "dataset").exists():
            shutil.copytree(case.root / "dataset", root / "dataset")
            (root / "checkpoints").mkdir()
            shutil.copy(case.checkpoint, root / "checkpoints" / RELEASES[name][1])

    monkeypatch.setattr(reproduce, "download", download)
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


def published(monkeypatch: pytest.MonkeyPatch, folder: Path, **numbers: float) -> None:
    """Let the paper have published these numbers."""
    table = json.loads(json.dumps(TABLE))
    (row,) = (row for row in table["datasets"]["charades"]["rows"] if row.get("kind") == "published")
    row.update(numbers)
    (folder / "results.json").write_text(json.dumps(table))
    monkeypatch.setattr(reproduce, "RESULTS", folder / "results.json")


def test_from_nothing_to_the_row_of_the_table(
    source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["charades", "--root_path", str(source), "--device", "-1", "--num_workers", "0"]
    reproduce.main(words)
    said = capsys.readouterr().out
    (run,) = (source / "results" / "charades" / "reproduce").glob("released-*")
    fused = read_json(run / "metrics.json")["fused"]
    numbers = " | ".join(f"{fused[key]:.1f}" for key in RECALLS)
    row = f"| A3PRVR, released checkpoint | AAAI 2026 | I3D, CLIP | {numbers} |  |"
    assert said.splitlines()[-1] == row
    assert "no published numbers are known" in said
    assert said.count("done before") == 0

    # With numbers to compare with; nothing is computed again.
    monkeypatch.setattr(reproduce, "check_dataset", None)
    monkeypatch.setattr("method.evaluate.main", None)
    published(monkeypatch, source, r1=fused["r1"] + 0.05, sumr=fused["sumr"] - 0.1)
    reproduce.main(words)
    said = capsys.readouterr().out
    assert said.count("done before") == 2
    assert "the numbers are the published ones" in said
    assert said.splitlines()[-1] == row

    published(monkeypatch, source, r1=fused["r1"] + 0.3, r5=fused["r5"])
    with pytest.raises(SystemExit) as end:
        reproduce.main(words)
    assert end.value.code == 1
    said = capsys.readouterr().out
    assert "differs by 0.30, more than the tolerance of 0.1" in said
    assert "R@5 is" not in said


def test_other_files_are_checked_and_evaluated_again(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["charades", "--root_path", str(source), "--device", "-1", "--num_workers", "0"]
    reproduce.main(words)
    checked: list[str] = []
    monkeypatch.setattr(reproduce, "check_dataset", lambda given: checked.append(given[0]))
    (captions,) = source.rglob("charadesval.caption.txt")
    captions.write_text(captions.read_text() + "\n")
    reproduce.main(words)
    assert checked == ["charades"]
    assert len(list((source / "results" / "charades" / "reproduce").glob("released-*"))) == 2


def test_nan_is_a_difference() -> None:
    (line,) = reproduce.compare({"r1": float("nan")}, {"r1": 2.0}, {"recall": 0.1, "sumr": 0.2})
    assert "R@1 is nan, published 2.0" in line


def test_a_root_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--root_path .*nowhere: no such folder"):
        reproduce.main(["tvr", "--root_path", str(tmp_path / "nowhere")])
