from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from method.data.captions import Caption
from method.data.ragged import Ragged
from method.evaluation.corpus import Corpus, QuerySet
from method.evaluation.frame_embeddings import FrameEmbeddings
from method.evaluation.moment_metrics import moment_metrics, predict_moments
from method.evaluation.moments import (
    Moment,
    TrueMoment,
    best_moment,
    frame_timeline,
    frame_timelines,
    iou,
    read_moments,
    resampled,
)
from method.evaluation.ranking import rank
from method.runtime.errors import InputError
from tests.evaluation.corpora import settings_of
from tests.evaluation.reported import WEIGHT, report_input, some_captions, some_moments


def unit_rows(count: int, width: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.mark.parametrize(("frames", "length"), [(1, 5), (2, 4), (3, 7), (5, 5), (31, 128), (9, 10)])
def test_timelines_are_resampled_linearly_between_frame_centres(frames: int, length: int) -> None:
    timelines = np.random.default_rng(0).standard_normal((3, frames)).astype(np.float32)
    old, new = (np.arange(frames) + 0.5) / frames, (np.arange(length) + 0.5) / length
    expected = np.stack([np.interp(new, old, row) for row in timelines])
    found = resampled(torch.from_numpy(timelines), length).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(("action", "object_"), [(6, 4), (4, 6), (5, 5), (1, 1), (1, 7)])
def test_timelines_are_resampled_cosines_fused_like_scores(action: int, object_: int) -> None:
    keys = {"action": unit_rows(action, 8, 1), "object": unit_rows(object_, 8, 2)}
    vectors = {"action": unit_rows(3, 8, 3), "object": unit_rows(3, 8, 4)}
    length = max(action, object_)
    clock = (np.arange(length) + 0.5) / length
    for query in range(3):
        expected = np.zeros(length)
        for name, weight in (("action", WEIGHT), ("object", 1 - WEIGHT)):
            cosines = [float(key @ vectors[name][query]) for key in keys[name]]
            centres = (np.arange(len(cosines)) + 0.5) / len(cosines)
            expected += weight * np.interp(clock, centres, cosines)
        found = frame_timeline(keys, {name: rows[query] for name, rows in vectors.items()}, settings_of(WEIGHT))
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
        torch.testing.assert_close(found, frame_timelines(keys, vectors, settings_of(WEIGHT))[query])


@pytest.mark.parametrize(("timeline", "span", "peak"), [
    ([0.0, 0.0, 1.0, 1.0, 0.0], (2, 4), 2),  # the first of equals, the span over both
    ([0.1, 0.2, 0.9, 0.6, 0.4], (2, 4), 2),  # 0.5 is the middle
    ([0.0, 0.5, 1.0, 0.49, 1.0], (1, 3), 2),  # exactly the middle still belongs to it, what is lower ends it
    ([3.0, 2.0, 1.0], (0, 2), 0),
    ([1.0, 2.0, 3.0], (1, 3), 2),
    ([-1.0, -0.9, 5.0, -0.9], (2, 3), 2),  # one frame wide
    ([0.9, 0.0, 0.8, 0.9, 0.8], (0, 1), 0),  # a peak as high elsewhere is not joined
])  # fmt: skip
def test_the_span_is_the_full_width_at_half_maximum(timeline: list[float], span: tuple[int, int], peak: int) -> None:
    length = len(timeline)
    expected = Moment(span[0] / length, span[1] / length, (peak + 0.5) / length, timeline[peak])
    assert best_moment(timeline) == expected
    assert best_moment(torch.tensor(timeline, dtype=torch.float64)) == expected


@pytest.mark.parametrize("timeline", [[0.3], [0.3] * 4, [0.3, 0.3 + 1e-8, 0.3]])
def test_a_timeline_without_a_peak_gives_the_whole_video(timeline: list[float]) -> None:
    moment = best_moment(timeline)
    assert (moment.start, moment.end) == (0.0, 1.0)


@given(st.lists(st.integers(-100, 100), min_size=1, max_size=30), st.integers(1, 9), st.integers(-50, 50))
def test_the_span_equals_a_loop(values: list[int], scale: int, shift: int) -> None:
    level = (min(values) + max(values)) / 2
    peak = values.index(max(values))
    first, behind = peak, peak + 1
    while first > 0 and values[first - 1] >= level:
        first -= 1
    while behind < len(values) and values[behind] >= level:
        behind += 1
    moment = best_moment(values)
    assert (moment.start, moment.end) == (first / len(values), behind / len(values))
    assert moment.start < moment.peak < moment.end
    moved = best_moment([scale * value + shift for value in values])
    assert (moved.start, moved.end, moved.peak) == (moment.start, moment.end, moment.peak)


@pytest.mark.parametrize(("a", "b", "expected"), [
    ((0, 1), (0, 1), 1.0),
    ((0, 1), (1, 2), 0.0),
    ((0, 1), (3, 4), 0.0),
    ((0, 4), (1, 2), 0.25),
    ((0, 3), (1, 4), 0.5),
    ((1, 1), (1, 1), 0.0),
    ((0, 2), (1, 1), 0.0),
])  # fmt: skip
def test_iou(a: tuple[float, float], b: tuple[float, float], expected: float) -> None:
    assert iou(a, b) == iou(b, a) == expected


def write_rows(path: Path, *rows: Any) -> Path:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), "utf-8")
    return path


def row(name: str, start: float, end: float, duration: float) -> dict[str, Any]:
    return {"cap_id": name, "start": start, "end": end, "duration": duration}


def test_moments_are_read_and_clipped_to_their_video(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "m", row("a", 1, 2.5, 10), "", row("b", -1, 12, 10) | {"caption": "more"})
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    moments = read_moments(path, {"a", "b", "c"})
    assert moments == {"a": TrueMoment(1.0, 2.5, 10.0), "b": TrueMoment(0.0, 10.0, 10.0)}
    assert (moments["a"].span, moments["a"].ratio) == ((0.1, 0.25), 0.15)


def test_a_missing_file_is_logged_and_gives_no_moments(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert read_moments(tmp_path / "none.jsonl", {"a"}) is None
    assert str(tmp_path / "none.jsonl") in caplog.text


def test_unusable_moments_are_skipped_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [row("a", 1, 2, 10), row("x", 1, 2, 10), row("b", 11, 12, 10), row("c", 3, 3, 10)]
    assert list(read_moments(write_rows(tmp_path / "m", *rows), {"a", "b", "c"}) or {}) == ["a"]
    unknown, outside = (record.getMessage() for record in caplog.records)
    assert "not evaluated (1): 'x'" in unknown
    assert "outside their video (2): 'b'; 'c'" in outside


@pytest.mark.parametrize(("line", "message"), [
    ("{not json", "expected a JSON object, found '{not json'"),
    ("[" * 100_000, "expected a JSON object"),
    ("[1]", "cap_id"),
    ({"start": 1, "end": 2, "duration": 3}, "cap_id"),
    ({"cap_id": 7, "start": 1, "end": 2, "duration": 3}, "cap_id"),
    ({"cap_id": "b", "start": 1, "end": 2}, "duration of 'b' is None, expected seconds"),
    (row("b", 1, "2", 3), "end of 'b' is '2', expected seconds"),  # type: ignore[arg-type]
    (row("b", True, 2, 3), "start of 'b' is True"),
    (row("b", float("nan"), 2, 3), "start of 'b' is nan"),
    (row("b", 0, float("inf"), 3), "end of 'b' is inf"),
    (row("b", 0, 10**400, 3), "end of 'b' is 1000"),
    (row("b", 2, 1, 3), "'b': start 2, end 1, duration 3: expected start <= end"),
    (row("b", 0, 0, 0), "expected start <= end and a duration above 0"),
    (row("a", 1, 2, 3), "cap_id 'a' occurs a second time"),
])  # fmt: skip
def test_a_wrong_line_is_named(tmp_path: Path, line: Any, message: str) -> None:
    path = write_rows(tmp_path / "m", row("a", 1, 2, 10), line)
    with pytest.raises(InputError) as error:
        read_moments(path, {"a", "b"})
    assert str(error.value).startswith(f"{path}: line 2: ")
    assert message in str(error.value)


def axis_videos() -> tuple[Corpus, QuerySet]:
    """Three videos of four frames that see one of four things each, and captions that ask for one thing."""
    things = torch.eye(4)
    seen = {"A": [0, 1, 1, 3], "B": [2, 2, 0, 0], "C": [3, 3, 3, 3]}
    keys = FrameEmbeddings.of(Ragged.of([things[frames] for frames in seen.values()]))
    asked = {"A#0": 1, "B#0": 0, "B#1": 2, "C#0": 1}
    captions = [Caption(name, name[0], "text") for name in asked]
    return Corpus(list(seen), {"action": keys}), QuerySet(captions, {"action": things[list(asked.values())]})


def test_moment_metrics_of_a_handmade_case() -> None:
    evaluation = rank(*axis_videos(), settings_of(0.5, branches=["action"]))
    assert evaluation.ranks["fused"].tolist() == [1, 2, 1, 3]
    known = {
        "A#0": TrueMoment(5.0, 15.0, 20.0),  # found: frames 1 and 2, 5 to 15 s; IoU 1
        "B#0": TrueMoment(5.0, 20.0, 20.0),  # found: 10 to 20 s; IoU 2/3; its video is second
        "B#1": TrueMoment(0.0, 4.0, 20.0),  # found: 0 to 10 s; IoU 0.4
    }
    found = predict_moments(evaluation, known.keys())
    assert {name: (moment.start, moment.end) for name, moment in found.items()} == {
        "A#0": (0.25, 0.75),
        "B#0": (0.5, 1.0),
        "B#1": (0.0, 0.5),
    }
    metrics = moment_metrics(evaluation, known)
    third = 100 / 3
    assert metrics is not None
    assert metrics["captions"] == 3
    assert metrics["in_video"] == pytest.approx({"r1_iou0.3": 100, "r1_iou0.5": 2 * third, "r1_iou0.7": third})
    assert metrics["in_corpus"] == pytest.approx(
        {
            "r1_iou0.3": 2 * third, "r1_iou0.5": third, "r1_iou0.7": third,
            "r10_iou0.3": 100, "r10_iou0.5": 2 * third, "r10_iou0.7": third,
            "r100_iou0.3": 100, "r100_iou0.5": 2 * third, "r100_iou0.7": third,
        }
    )  # fmt: skip
    assert "not of the paper" in metrics["about"]


def test_no_moment_metrics_without_annotated_moments() -> None:
    evaluation = rank(*axis_videos(), settings_of(0.5, branches=["action"]))
    assert moment_metrics(evaluation, {}) is None
    assert moment_metrics(evaluation, {"other": TrueMoment(0, 1, 2)}) is None


@pytest.mark.parametrize("changes", [{}, {"fusion": "none", "object_width": None, "temperatures": ("action",)}])
def test_moment_metrics_equal_a_loop_over_captions(tmp_path: Path, changes: dict[str, Any]) -> None:
    captions = some_captions(30)
    known = some_moments(captions, every=2)
    evaluation = report_input(captions, known, tmp_path / "model.ckpt", **changes).evaluation
    in_video, in_corpus = [], []
    for index, caption in enumerate(captions):
        if caption.id not in known:
            continue
        keys = evaluation.corpus.video(evaluation.video_ids.index(caption.video_id))
        vectors = {name: rows[index] for name, rows in evaluation.queries.vectors.items()}
        moment, true = best_moment(frame_timeline(keys, vectors, evaluation.settings)), known[caption.id]
        found = iou((moment.start * true.duration, moment.end * true.duration), (true.start, true.end)) >= 0.3
        in_video.append(found)
        in_corpus.append(found and evaluation.ranks["fused"][index] <= 10)
    metrics = moment_metrics(evaluation, known)
    assert metrics is not None
    assert 0 < sum(in_corpus) < sum(in_video) < len(in_video)
    assert metrics["in_video"]["r1_iou0.3"] == pytest.approx(100 * np.mean(in_video))
    assert metrics["in_corpus"]["r10_iou0.3"] == pytest.approx(100 * np.mean(in_corpus))
