"""Video corpus moment retrieval against a loop over all moments of all videos."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from method.data.captions import Caption
from method.data.ragged import Ragged
from method.evaluation.corpus import Corpus, QuerySet
from method.evaluation.frame_embeddings import FrameEmbeddings
from method.evaluation.moments import TrueMoment, frame_timeline, iou
from method.evaluation.ranking import Evaluation, rank
from method.evaluation.vcmr import BEST_VIDEOS, right_positions, vcmr_metrics
from tests.evaluation.corpora import settings_of
from tests.evaluation.test_proposals import naive_moments

IOUS = (0.3, 0.5, 0.7)


def things(videos: int, captions: int, longest: int, ties: bool, seed: int) -> tuple[Corpus, QuerySet]:
    """Videos and captions of two branches; with `ties` frames show one of four things, and scores are 0, 0.5 or 1."""
    generator = torch.Generator().manual_seed(seed)
    rows: dict[str, list[torch.Tensor]] = {"action": [], "object": []}

    def draw(count: int) -> torch.Tensor:
        if ties:
            return torch.eye(4)[torch.randint(4, (count,), generator=generator)]
        return F.normalize(torch.randn(count, 4, generator=generator), dim=-1)

    for _ in range(videos):
        for own in rows.values():
            own.append(draw(int(torch.randint(1, longest + 1, (1,), generator=generator))))
    frames = {name: FrameEmbeddings.of(Ragged.of(own)) for name, own in rows.items()}
    owners = [f"v{(7 * number) % videos}" for number in range(captions)]
    queries = [Caption(f"{owner}#{number}", owner, "text") for number, owner in enumerate(owners)]
    return Corpus([f"v{v}" for v in range(videos)], frames), QuerySet(queries, {name: draw(captions) for name in rows})


def spans_of(queries: QuerySet, seed: int) -> dict[str, TrueMoment]:
    random = np.random.default_rng(seed)
    starts, ends = np.sort(random.uniform(0, 30, (len(queries.captions), 2))).T.tolist()
    names = [caption.id for caption in queries.captions]
    return {
        name: TrueMoment(first, end, 30.0)
        for number, (name, first, end) in enumerate(zip(names, starts, ends, strict=True))
        if number % 5
    }


def naive_positions(evaluation: Evaluation, index: int, true: TrueMoment) -> list[float]:
    """Where the first right moment is among all moments of all videos, for each IoU."""
    assert evaluation.scores is not None
    vectors = {name: own[index] for name, own in evaluation.queries.vectors.items()}
    found = []
    for video, video_id in enumerate(evaluation.video_ids):
        timeline = frame_timeline(evaluation.corpus.video(video), vectors, evaluation.settings)
        moments = naive_moments(timeline.double().tolist())
        score = float(evaluation.scores["fused"][index, video])
        own = video_id == evaluation.queries.captions[index].video_id
        for moment in moments:
            overlap = iou((moment.start, moment.end), true.span) if own else -1.0
            found.append((score + (moment.score - moments[0].score), overlap))
    positions = []
    for least in IOUS:
        ranking = sorted(found, key=lambda pair: (-pair[0], pair[1] >= least))
        right = [place for place, (_, overlap) in enumerate(ranking, start=1) if overlap >= least]
        positions.append(float(right[0]) if right else np.inf)
    return positions


@pytest.mark.parametrize(("videos", "captions", "longest", "ties"), [
    (1, 4, 9, False), (12, 30, 12, False), (12, 30, 12, True), (130, 20, 6, False), (130, 30, 4, True),
])  # fmt: skip
def test_recalls_equal_a_loop_over_all_moments(
    tmp_path: Path, videos: int, captions: int, longest: int, ties: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 130 videos not all are kept; with ties, hundreds of moments score the same."""
    monkeypatch.setattr("method.evaluation.vcmr._BLOCK", 5)
    corpus, queries = things(videos, captions, longest, ties, seed=videos)
    moments = spans_of(queries, 2)
    evaluation = rank(corpus, queries, settings_of(0.5), tmp_path, best_videos=BEST_VIDEOS)
    annotated = [index for index, caption in enumerate(queries.captions) if caption.id in moments]
    true = [moments[queries.captions[index].id] for index in annotated]
    expected = np.array([naive_positions(evaluation, index, own) for index, own in zip(annotated, true, strict=True)])
    found = right_positions(evaluation, np.array(annotated), np.array([own.span for own in true]))
    np.testing.assert_array_equal(np.where(expected > 100, np.inf, expected), np.where(found > 100, np.inf, found))
    metrics = vcmr_metrics(evaluation, moments)
    assert metrics is not None
    assert metrics.pop("captions") == len(moments)
    assert "weakly supervised" in metrics.pop("about")
    assert metrics == pytest.approx(
        {f"r{k}_iou{m}": 100 * float((expected[:, i] <= k).mean()) for k in (1, 10, 100) for i, m in enumerate(IOUS)}
    )
    if videos > 1:
        assert metrics["r100_iou0.3"] > 0
    if ties and videos > 101:
        assert (np.isfinite(expected) & (expected > 100)).any()  # the cut was needed


def axis_videos() -> tuple[Corpus, QuerySet]:
    """Two videos of eight frames that see one of four things each, and a caption that asks for thing 1."""
    eye = torch.eye(4)
    seen = {"A": [0, 1, 1, 0, 0, 0, 0, 0], "B": [0, 1, 0, 0, 0, 1, 1, 0]}
    keys = FrameEmbeddings.of(Ragged.of([eye[frames] for frames in seen.values()]))
    return Corpus(list(seen), {"action": keys}), QuerySet([Caption("B#0", "B", "text")], {"action": eye[1:2]})


@pytest.mark.parametrize(("start", "end", "position"), [
    (5, 7, [3, 3, 3]),  # the second moment of B; A's and B's other one score the same
    (1, 2, [3, 3, 3]),
    (4, 7, [3, 3, np.inf]),  # an IoU of 2/3
    (0, 8, [np.inf, np.inf, np.inf]),  # an IoU of 1/4
])  # fmt: skip
def test_positions_of_a_handmade_case(start: int, end: int, position: list[float]) -> None:
    evaluation = rank(*axis_videos(), settings_of(0.5, branches=["action"]), best_videos=BEST_VIDEOS)
    found = right_positions(evaluation, np.array([0]), np.array([[start / 8, end / 8]]))
    assert found.tolist() == [position]


def test_a_lower_peak_comes_after_what_beats_its_video_without_the_difference() -> None:
    """Video scores 0.9 and 0.6; the first video's second moment, 0.4 below its best, comes after the second video."""
    rows = [[0.9, -0.3, 0.5, -0.3], [-0.3, 0.6, -0.3, -0.3]]
    keys = FrameEmbeddings.of(Ragged.of([torch.tensor([[x, (1 - x * x) ** 0.5] for x in row]) for row in rows]))
    queries = QuerySet([Caption("A#0", "A", "text")], {"action": torch.tensor([[1.0, 0.0]])})
    evaluation = rank(
        Corpus(["A", "B"], {"action": keys}), queries, settings_of(0.5, branches=["action"]), best_videos=BEST_VIDEOS
    )
    spans: Any = {(0, 1): 1.0, (2, 3): 3.0}
    for (start, end), position in spans.items():
        found = right_positions(evaluation, np.array([0]), np.array([[start / 4, end / 4]]))
        assert found.tolist() == [[position] * 3]


@pytest.mark.parametrize(("videos", "percent"), [(99, 100.0), (100, 100.0), (101, 0.0), (102, 0.0), (150, 0.0)])
def test_a_hundred_videos_that_tie_are_the_edge_of_the_cut(videos: int, percent: float) -> None:
    """All tie with the right one, which is last: its rank is the number of videos."""
    keys = FrameEmbeddings.of(Ragged.of([torch.ones(1, 1)] * videos))
    names = [f"v{number}" for number in range(videos)]
    queries = QuerySet([Caption(f"{name}#0", name, "text") for name in names], {"action": torch.ones(videos, 1)})
    settings = settings_of(0.5, branches=["action"])
    evaluation = rank(Corpus(names, {"action": keys}), queries, settings, best_videos=BEST_VIDEOS)
    metrics = vcmr_metrics(evaluation, {caption.id: TrueMoment(0, 9, 10) for caption in queries.captions})
    assert metrics is not None
    assert [metrics[f"r{k}_iou0.7"] for k in (1, 10, 100)] == [0.0, 0.0, percent]


def test_without_annotated_moments_or_the_best_videos() -> None:
    evaluation = rank(*axis_videos(), settings_of(0.5, branches=["action"]))
    assert vcmr_metrics(evaluation, {"other": TrueMoment(0, 1, 2)}) is None
    with pytest.raises(ValueError, match="has not kept the 101 best videos"):
        vcmr_metrics(evaluation, {"B#0": TrueMoment(0, 1, 2)})
    few = rank(*axis_videos(), settings_of(0.5, branches=["action"]), best_videos=1)
    with pytest.raises(ValueError, match="has not kept the 101 best videos"):
        vcmr_metrics(replace(few), {"B#0": TrueMoment(0, 1, 2)})
