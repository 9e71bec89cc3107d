"""Runs compared by their ranks.csv."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from method.evaluation.intervals import paired_differences
from method.evaluation.metrics import retrieval_metrics
from method.runtime.errors import InputError
from tests.helpers.small_dataset import SmallDataset
from utils.compare_runs import main

VIDEOS = 6
IDS = [f"v{video}#enc#{k}" for video in range(VIDEOS) for k in range(1 + video % 3)]


def write(path: Path, ranks: Mapping[str, Sequence[int]], ids: Sequence[str] = IDS, texts: bool = True) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["caption_id", "video_id", *(["caption"] if texts else []), *(f"rank_{name}" for name in ranks)]
        )
        for place, name in enumerate(ids):
            sentence = [f"sentence, of {name}"] if texts else []
            writer.writerow([name, name.split("#")[0], *sentence, *(own[place] for own in ranks.values())])
    return path


def random_ranks(seed: int) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    return {name: random.integers(1, 150, len(IDS)) for name in ("action", "object", "fused")}


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return [write(tmp_path / f"{name}.csv", random_ranks(seed)) for seed, name in enumerate("abc")]


def answer(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> Any:
    main([*map(str, arguments), "--format", "json"])
    return json.loads(capsys.readouterr().out)


def test_the_first_is_compared_with_each_other(files: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(capsys, *files)
    owners = [name.split("#")[0] for name in IDS]
    assert (found["first_run"], found["captions"], found["videos"]) == (str(files[0]), len(IDS), VIDEOS)
    assert [own["second_run"] for own in found["comparisons"]] == [str(path) for path in files[1:]]
    for seed, comparison in enumerate(found["comparisons"], start=1):
        lines = {(line["score"], line["metric"]): line for line in comparison["metrics"]}
        for name in ("action", "object", "fused"):
            first, second = random_ranks(0)[name], random_ranks(seed)[name]
            differences = paired_differences(first, second, owners)
            assert differences is not None
            for key, difference in differences.items():
                line = lines[name, key]
                assert (line["first"], line["second"]) == (
                    retrieval_metrics(first)[key],
                    retrieval_metrics(second)[key],
                )
                assert line["difference"] == pytest.approx(line["second"] - line["first"], abs=1e-9)
                assert (line["low"], line["high"], line["p"]) == (*difference.interval, difference.p)
            at_five = lines[name, "r5"]
            assert at_five["better"] == int(((second <= 5) & (first > 5)).sum())
            assert at_five["worse"] == int(((second > 5) & (first <= 5)).sum())
            by_rank = lines[name, "medr"]
            assert by_rank["better"] == int((second < first).sum())
            assert by_rank["same"] == int((second == first).sum())
            assert all(line["better"] + line["same"] + line["worse"] == len(IDS) for line in lines.values())


def test_captions_are_matched_by_id_and_not_by_place(
    files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    order = np.random.default_rng(9).permutation(len(IDS))
    other = {name: own[order] for name, own in random_ranks(1).items()}
    write(tmp_path / "other.csv", other, [IDS[place] for place in order])
    straight, shuffled = (answer(capsys, files[0], path) for path in (files[1], tmp_path / "other.csv"))
    assert shuffled["comparisons"][0]["metrics"] == straight["comparisons"][0]["metrics"]


def test_captions_that_changed_most_by_the_ratio_of_their_ranks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = [400, 40, 5, 1, 2, 300, 7, 7, 7, 7, 7, 7]
    after = [100, 1, 5, 20, 3, 301, 7, 7, 7, 7, 7, 7]
    write(tmp_path / "a.csv", {"fused": before}, texts=False)
    write(tmp_path / "b.csv", {"fused": after})
    (found,) = answer(capsys, tmp_path / "a.csv", tmp_path / "b.csv", "--changed", "3")["comparisons"]
    assert [(own["caption_id"], own["first_rank"], own["second_rank"]) for own in found["became_better"]] == [
        (IDS[1], 40, 1),
        (IDS[0], 400, 100),
    ]
    assert [own["caption_id"] for own in found["became_worse"]] == [IDS[3], IDS[4], IDS[5]]
    assert found["became_better"][0]["sentence"] == f"sentence, of {IDS[1]}"  # from the file that has it
    (none,) = answer(capsys, tmp_path / "a.csv", tmp_path / "b.csv", "--changed", "0")["comparisons"]
    assert none["became_better"] == none["became_worse"] == []


def test_every_format(files: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    (expected,) = answer(capsys, *files[:2])["comparisons"]
    line = next(own for own in expected["metrics"] if (own["score"], own["metric"]) == ("fused", "sumr"))
    for form in ("text", "markdown", "latex"):
        main([*map(str, files[:2]), "--format", form])
        shown = capsys.readouterr().out.replace("$-$", "-")
        for value in (f"{line['first']:.1f}", f"{line['low']:+.1f} to {line['high']:+.1f}", f"{line['p']:.3f}"):
            assert value in shown, form
        assert "not about other training seeds" in shown.replace("\\_", "_")
        assert expected["became_better"][0]["caption_id"].replace("#", "\\#" if form == "latex" else "#") in shown
    main([*map(str, files[:2]), "--format", "csv"])
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) == 18
    assert float(rows[-2]["low"]) == line["low"]
    assert (rows[-1]["metric"], rows[-1]["p"]) == ("medr", "")


def test_other_captions_are_refused_with_counts_and_a_first_name(files: list[Path], tmp_path: Path) -> None:
    ids = [*IDS[2:], "new#enc#0"]
    other = write(tmp_path / "other.csv", {"fused": [1] * len(ids)}, ids)
    message = (
        f"not the {len(IDS)} captions of {files[0]}: 2 missing, the first '{IDS[0]}'; 1 more, the first 'new#enc#0'"
    )
    with pytest.raises(InputError) as raised:
        main([str(files[0]), str(other)])
    assert str(raised.value) == f"{other}: {message}"
    moved = tmp_path / "moved.csv"
    moved.write_text(files[0].read_text().replace(f"{IDS[3]},v2", f"{IDS[3]},v9"))
    with pytest.raises(InputError, match=f"1 captions have another video than in .*, the first '{IDS[3]}'"):
        main([str(files[0]), str(moved)])


def test_runs_without_a_common_score(files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = write(tmp_path / "other.csv", {"audio": [1] * len(IDS)})
    with pytest.raises(InputError, match="scores audio, expected one of action, object, fused"):
        main([str(files[0]), str(other)])
    main([str(files[0]), str(write(tmp_path / "two.csv", {"fused": [1] * len(IDS), "audio": [1] * len(IDS)}))])
    assert "B: not compared, in one run only: action, audio, object" in capsys.readouterr().out


def test_captions_of_one_video_have_no_interval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids = ["v#enc#0", "v#enc#1"]
    paths = [write(tmp_path / f"{rank}.csv", {"fused": [rank, 1]}, ids) for rank in (1, 2)]
    main([*map(str, paths)])
    assert "-50.0" in capsys.readouterr().out
    (found,) = answer(capsys, *paths)["comparisons"]
    assert {(line["low"], line["high"], line["p"]) for line in found["metrics"]} == {(None, None, None)}


def test_folders_of_runs(shared: SmallDataset, finished: Path, one_epoch: Path, tmp_path: Path) -> None:
    main([str(finished), str(one_epoch)])
    (tmp_path / "old").mkdir()
    with pytest.raises(InputError, match=r"old/ranks\.csv: no such file; method/evaluate\.py writes it"):
        main([str(finished), str(tmp_path / "old")])
    with pytest.raises(InputError, match="1 runs, expected 2 to 26"):
        main([str(finished)])
    with pytest.raises(InputError, match="--changed -1: expected at least 0"):
        main([str(finished), str(one_epoch), "--changed", "-1"])
