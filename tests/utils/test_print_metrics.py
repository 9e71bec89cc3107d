"""The table of a run beside chance."""

from pathlib import Path

import pytest

from method.runtime.errors import InputError
from method.runtime.files import write_json
from utils.print_metrics import chance, main

SCORE = {"r1": 12.5, "r5": 30.0, "r10": 45.5, "r100": 99.0, "sumr": 187.0, "medr": 9, "meanr": 20.0, "map": 0.2}


def test_chance_is_capped() -> None:
    assert chance(1000) == [0.1, 0.5, 1.0, 10.0, pytest.approx(11.6)]
    assert chance(4) == [25.0, 100.0, 100.0, 100.0, 325.0]


def test_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = {"epoch": 3, "videos": 50, "queries": 9, "fused": SCORE, "action": SCORE}
    write_json(tmp_path / "metrics.json", metrics)
    main([str(tmp_path / "metrics.json")])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        ["9", "captions,", "50", "videos", "R@1", "R@5", "R@10", "R@100", "SumR"],
        ["chance", "2.0", "10.0", "20.0", "100.0", "132.0"],
        ["action", "12.5", "30.0", "45.5", "99.0", "187.0"],
        ["fused", "12.5", "30.0", "45.5", "99.0", "187.0"],
    ]


def test_intervals_stand_below_their_score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spans = {"r1": [8.25, 17.0], "r5": [20, 40], "r10": [1, 2], "r100": [100, 100], "sumr": [170.0, 200.0]}
    metrics = {"videos": 50, "queries": 9, "fused": SCORE, "intervals": {"about": {"level": 0.95}, "fused": spans}}
    write_json(tmp_path / "metrics.json", metrics)
    main([str(tmp_path / "metrics.json")])
    *_, fused, interval = capsys.readouterr().out.splitlines()
    assert interval.split() == ["95%", "interval", "8.2-17.0", "20.0-40.0", "1.0-2.0", "100.0-100.0", "170.0-200.0"]
    assert [len(line) for line in (fused, interval)] == [88, 88]


def test_several_right_videos_and_moments_have_tables_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    several = {**SCORE, **{f"hit{k}": 50.0 + k for k in (1, 5, 10, 100)}}
    vcmr = {f"r{k}_iou{least}": k * least for k in (1, 10, 100) for least in (0.3, 0.5, 0.7)}
    metrics = {"videos": 50, "queries": 9, "fused": SCORE, "multi_gt": {"captions": 8, "left_out": 1, "fused": several}}
    write_json(tmp_path / "metrics.json", {**metrics, "vcmr": {"about": "", "captions": 7, **vcmr}})
    main([str(tmp_path / "metrics.json")])
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[4:] == [
        "several right videos, 8 captions R@1 R@5 R@10 R@100 SumR hit@1 hit@10 MedR",
        "fused 12.5 30.0 45.5 99.0 187.0 51.0 60.0 9.0",
        "",
        "moments of all videos, 7 captions R@1 R@10 R@100",
        "IoU 0.3 0.3 3.0 30.0",
        "IoU 0.5 0.5 5.0 50.0",
        "IoU 0.7 0.7 7.0 70.0",
    ]


@pytest.mark.parametrize(
    "content", [[], {"videos": 3}, {"videos": 0, "queries": 1}, {"videos": 2, "queries": 1, "fused": {}}]
)
def test_other_files_are_refused(tmp_path: Path, content: object) -> None:
    write_json(tmp_path / "metrics.json", content)
    with pytest.raises(InputError, match=r"metrics.json: not the metrics of a run"):
        main([str(tmp_path / "metrics.json")])
