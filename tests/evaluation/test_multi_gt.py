"""Several right videos: the metrics against a loop over whole rankings, and the files of labels."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from method.data.captions import Caption
from method.evaluation.corpus import QuerySet
from method.evaluation.metrics import RECALL_AT, retrieval_metrics
from method.evaluation.multi_gt import RightVideos, read_right_videos
from method.evaluation.multi_gt_metrics import RightRanks, RightScores, multi_gt_metrics
from method.evaluation.ranking import Evaluation, rank
from method.runtime.errors import InputError
from method.runtime.processes import SINGLE_PROCESS, Processes
from tests.evaluation.corpora import random_encoded, settings_of

KEYS = ["r1", "r5", "r10", "r100", "sumr", "hit1", "hit5", "hit10", "hit100", "medr", "meanr", "map"]


def labels_of(right: Sequence[Sequence[int]]) -> RightVideos:
    """Labels of the captions that have some."""
    named = {f"c{caption}": tuple(f"v{video}" for video in videos) for caption, videos in enumerate(right) if videos}
    return RightVideos(named, len(right) - len(named))


def ranks_of_table(scores: torch.Tensor, right: Sequence[Sequence[int]], block: int = 3) -> RightRanks:
    """The ranks of a table of scores that arrives in blocks of `block` captions."""
    count, videos = scores.shape
    captions = [Caption(f"c{index}", "", "") for index in range(count)]
    collected = RightScores(labels_of(right), captions, [f"v{v}" for v in range(videos)], ["fused"], scores.device)
    for start in range(0, count, block):
        own = slice(start, min(start + block, count))
        collected.add(own, {"fused": scores[own]})
    return collected.ranks(slice(0, count), SINGLE_PROCESS)


def naive_metrics(scores: Sequence[Sequence[float]], right: Sequence[Sequence[int]]) -> dict[str, float]:
    """The definitions, caption by caption and right video by right video."""
    recalls: dict[int, list[float]] = {k: [] for k in RECALL_AT}
    firsts, precisions = [], []
    for row, own in zip(scores, right, strict=True):
        if not own:
            continue
        ranks = sorted(sum(score >= row[video] for score in row) for video in own)
        for k in RECALL_AT:
            recalls[k].append(sum(rank <= k for rank in ranks) / len(own))
        firsts.append(ranks[0])
        precisions.append(sum(sum(other <= rank for other in ranks) / rank for rank in ranks) / len(own))
    values = {f"r{k}": 100 * sum(recalls[k]) / len(firsts) for k in RECALL_AT}
    values["sumr"] = sum(values.values())
    values |= {f"hit{k}": 100 * sum(first <= k for first in firsts) / len(firsts) for k in RECALL_AT}
    ordered = sorted(firsts)
    values["medr"] = (ordered[(len(firsts) - 1) // 2] + ordered[len(firsts) // 2]) / 2
    return {**values, "meanr": sum(firsts) / len(firsts), "map": sum(precisions) / len(firsts)}


@given(st.integers(1, 8), st.integers(1, 130), st.integers(1, 4), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=80)
def test_metrics_equal_a_loop_over_rankings_with_many_ties(count: int, videos: int, block: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    scores = random.integers(0, random.choice([1, 3, 20, 1000]), (count, videos)).astype(np.float32)
    right = [random.permutation(videos)[: random.integers(0, min(videos, 9) + 1)].tolist() for _ in range(count)]
    right[random.integers(count)] = list(range(0, videos, 2))
    found = ranks_of_table(torch.from_numpy(scores), right, block).metrics["fused"]
    assert list(found) == KEYS
    assert found == pytest.approx(naive_metrics(scores.tolist(), right), rel=1e-12)
    assert all(type(value) is float for value in found.values())


@pytest.mark.parametrize(("row", "right", "ranks"), [
    ([0.9, 0.5, 0.1], [0], [1]),
    ([0.5, 0.5, 0.1], [0], [2]),  # a tie with a wrong video counts against the caption
    ([0.5, 0.5, 0.1], [0, 1], [2, 2]),  # and one with a right video
    ([0.5, 0.5, 0.5], [0, 1], [3, 3]),
    ([0.9, 0.5, 0.5, 0.5, 0.1], [0, 2, 4], [1, 4, 5]),
    ([0.1, 0.2, 0.3], [0, 1], [2, 3]),
    ([0.0, -0.0, 0.0], [1], [3]),
])  # fmt: skip
def test_ranks_of_handmade_rows(row: list[float], right: list[int], ranks: list[int]) -> None:
    assert ranks_of_table(torch.tensor([row]), [right]).ranks["fused"].tolist() == ranks


def test_metrics_of_a_handmade_case() -> None:
    """Right videos at ranks 1 and 4 of one caption, at rank 2 of another, at 12 and 150 of a third."""
    metrics = multi_gt_metrics(np.array([1, 4, 2, 12, 150]), np.array([0, 2, 3]))
    assert metrics == pytest.approx({
        "r1": 100 * 0.5 / 3, "r5": 100 * 2 / 3, "r10": 100 * 2 / 3, "r100": 100 * 2.5 / 3,
        "sumr": 100 * (0.5 + 2 + 2 + 2.5) / 3,
        "hit1": 100 / 3, "hit5": 200 / 3, "hit10": 200 / 3, "hit100": 100.0,
        "medr": 2.0, "meanr": 5.0,
        "map": ((1 / 1 + 2 / 4) / 2 + 1 / 2 + (1 / 12 + 2 / 150) / 2) / 3,
    })  # fmt: skip


def test_one_right_video_gives_the_usual_metrics() -> None:
    random = np.random.default_rng(3)
    scores = torch.from_numpy(random.integers(0, 40, (50, 30)).astype(np.float32))
    right = random.integers(0, 30, 50)
    usual = retrieval_metrics((scores >= scores[range(50), right][:, None]).sum(1).numpy())
    found = ranks_of_table(scores, [[video] for video in right.tolist()]).metrics["fused"]
    assert {name: found[name] for name in usual} == pytest.approx(usual)
    assert [found[f"hit{k}"] for k in RECALL_AT] == [usual[f"r{k}"] for k in RECALL_AT]


class _Rank(Processes):
    """A rank that is a thread, and gathers through memory."""

    def __init__(self, rank: int, count: int, barrier: threading.Barrier, values: list[Any]) -> None:
        self.rank, self.count, self._barrier, self._values = rank, count, barrier, values

    def gather(self, value: Any) -> list[Any]:
        self._values[self.rank] = value
        self._barrier.wait(60)
        gathered = list(self._values)
        self._barrier.wait(60)
        return gathered


def rank_by_all(count: int, run: Callable[[Processes], Evaluation]) -> list[Evaluation]:
    """What each of several ranks gets."""
    barrier, values = threading.Barrier(count), [None] * count
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda number: run(_Rank(number, count, barrier, values)), range(count)))


def _labelled(count: int, videos: int) -> tuple[QuerySet, Any, RightVideos]:
    encoded = random_encoded(videos, count, 6)
    queries = encoded.queries()
    random = np.random.default_rng(1)
    right = {
        caption.id: tuple({caption.video_id: 0, **{f"v{v}": 0 for v in random.integers(0, videos, index % 5)}})
        for index, caption in enumerate(queries.captions)
        if index % 4
    }
    return queries, encoded, RightVideos(right, len(queries.captions) - len(right))


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_shards_give_what_one_process_gives(processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last bit, also where a process has no block. The ranks are those of the stored scores."""
    monkeypatch.setattr("method.evaluation.scorer._MAX_QUERY_BLOCK", 4)
    queries, encoded, labels = _labelled(18, 11)

    def run(own: Processes) -> Evaluation:
        return rank(encoded.corpus(), queries, settings_of(0.3), None, own, labels, best_videos=4)

    alone = run(SINGLE_PROCESS)
    assert alone.right_ranks is not None
    assert alone.best_videos is not None
    for result in rank_by_all(processes, run):
        assert result.right_ranks is not None
        assert result.best_videos is not None
        assert result.right_ranks.report() == alone.right_ranks.report()
        np.testing.assert_array_equal(result.best_videos.videos, alone.best_videos.videos)
        np.testing.assert_array_equal(result.best_videos.scores, alone.best_videos.scores)
    index_of = {video_id: index for index, video_id in enumerate(encoded.video_ids)}
    right = [[index_of[video] for video in labels.videos.get(caption.id, ())] for caption in queries.captions]
    for name, scores in encoded.scores(0.3).items():
        assert alone.right_ranks.metrics[name] == pytest.approx(naive_metrics(scores.tolist(), right))
    order = encoded.scores(0.3)["fused"].argsort(dim=1, descending=True)
    np.testing.assert_array_equal(alone.best_videos.videos, order[:, :4])


def test_scores_that_are_not_finite_are_refused_as_without_labels() -> None:
    queries, encoded, labels = _labelled(6, 5)
    encoded.vectors["object"][2] = torch.nan
    with pytest.raises(InputError, match=r"the object scores of caption 'v0#0' .* are not finite"):
        rank(encoded.corpus(), queries, settings_of(0.5), right_videos=labels)


# Files

CAPTIONS = [Caption(f"{video}#enc#{k}", video, f"text {video} {k}") for video in ("A", "B", "C") for k in (0, 1)]


def line(name: str, *videos: str, **more: Any) -> dict[str, Any]:
    return {"query_id": name, "caption": f"text {name[0]} {name[-1]}", "gt_video_ids": list(videos), **more}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), "utf-8")
    return path


def whole() -> list[dict[str, Any]]:
    return [line(caption.id, caption.video_id) for caption in CAPTIONS]


def test_labels_are_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [line("B#enc#1", "B", "A", "C"), "", *whole()[:3], *whole()[4:]]
    path = write(tmp_path / "labels.jsonl", *rows)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    labels = read_right_videos(path, CAPTIONS, subset=False)
    assert labels is not None
    assert list(labels.videos) == [caption.id for caption in CAPTIONS]
    assert labels.videos["B#enc#1"] == ("B", "A", "C")
    assert labels.left_out == 0
    assert labels.describe() == (
        "several right videos: 6 captions have labels, 1 of them (17%) more than one video, 1.33 on average"
    )
    assert not caplog.records


def test_no_file_gives_no_labels(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert read_right_videos(None, CAPTIONS, subset=False) is None
    with caplog.at_level(logging.INFO):
        assert read_right_videos(tmp_path / "none.jsonl", CAPTIONS, subset=False) is None
    assert str(tmp_path / "none.jsonl") in caplog.text


def test_captions_without_a_line_are_refused_or_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "labels.jsonl", *whole()[1:3], *whole()[4:])
    with pytest.raises(InputError) as error:
        read_right_videos(path, CAPTIONS, subset=False)
    assert str(error.value) == (
        f"{path}: no line for 2 of the 6 evaluated captions, the first is 'A#enc#0'; --multi_gt_subset leaves them out"
    )
    labels = read_right_videos(path, CAPTIONS, subset=True)
    assert labels is not None
    assert (len(labels.videos), labels.left_out) == (4, 2)
    assert labels.describe().endswith("2 captions have no labels and are left out")
    with pytest.raises(InputError, match="no line for any of the 6 evaluated captions, the first is 'A#enc#0'"):
        read_right_videos(write(path, line("X#enc#0", "A")), CAPTIONS, subset=True)


def test_right_videos_must_be_candidates(tmp_path: Path) -> None:
    rows = [*whole()[:2], line("B#enc#0", "B", "Y", "Z"), line("B#enc#1", "Y"), *whole()[4:], line("other", "W")]
    path = write(tmp_path / "labels.jsonl", *rows)
    with pytest.raises(InputError) as error:
        read_right_videos(path, CAPTIONS, subset=False)
    assert str(error.value) == (
        f"{path}: 3 right videos are not among the 3 evaluated videos, the first is 'Y' of caption 'B#enc#0' (line 3)"
    )


def test_labels_of_other_captions_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [*whole()[1:], line("X#enc#0", "A"), line("A#enc#0", "A", caption="Something  else")]
    path = write(tmp_path / "labels.jsonl", *rows)
    assert read_right_videos(path, CAPTIONS, subset=False) is not None
    unknown, other = caplog.messages
    assert "captions that are not evaluated (1): 'X#enc#0'" in unknown
    assert "another text than the label's (1)" in other
    assert "'A#enc#0' is 'text A 0', the label's is 'Something  else'" in other


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{not json", "expected a JSON object, found '{not json'"),
        ("[" * 100_000, "expected a JSON object"),
        ("[1]", 'expected {"query_id": text'),
        ({"gt_video_ids": ["A"]}, 'expected {"query_id": text'),
        ({"query_id": 7, "gt_video_ids": ["A"]}, 'expected {"query_id": text'),
        (line("B#enc#0", caption=3), "caption of 'B#enc#0' is 3, expected text"),
        ({"query_id": "B#enc#0", "caption": "x"}, "gt_video_ids of 'B#enc#0' is None, expected a list"),
        (line("B#enc#0"), "gt_video_ids of 'B#enc#0' is an empty list, expected a list of at least one video id"),
        (line("B#enc#0") | {"gt_video_ids": "A"}, "gt_video_ids of 'B#enc#0' is 'A', expected a list"),
        (line("B#enc#0") | {"gt_video_ids": ["A", 1]}, "gt_video_ids of 'B#enc#0' has 1, expected a list of"),
        (line("x" * 10**6, "A", "A"), f"gt_video_ids of '{'x' * 60}...' has 'A' more than once"),
        (line("B#enc#0", "A", "B", "A"), "gt_video_ids of 'B#enc#0' has 'A' more than once"),
        (line("A#enc#0", "A"), "query_id 'A#enc#0' occurs a second time, after line 1"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, row: Any, said: str) -> None:
    path = write(tmp_path / "labels.jsonl", whole()[0], row)
    with pytest.raises(InputError) as error:
        read_right_videos(path, CAPTIONS, subset=True)
    assert str(error.value).startswith(f"{path}: line 2: ")
    assert said in str(error.value)


def test_many_wrong_lines_are_counted(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"line 1: .*line 5: .*; and 4 more$"):
        read_right_videos(write(tmp_path / "labels.jsonl", *["{"] * 9), CAPTIONS, subset=True)
