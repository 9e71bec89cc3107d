"""The CSV files of a report: the numbers behind each figure, and the ranks of every caption."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from method.data.captions import Caption
from method.evaluation.metrics import Ranks
from method.evaluation.moments import Moment, TrueMoment, iou
from method.evaluation.report.breakdown import Breakdown
from method.evaluation.report.cost import Cost
from method.evaluation.report.failures import Failure, Timelines
from method.evaluation.report.statistics import (
    OUTCOMES,
    fusion_outcomes,
    rank_bins,
    rank_histogram,
    recall_curve,
)


def to_csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Rows as comma-separated text with a header.

    >>> to_csv(["id", "text"], [[1, 'says "no", leaves']]).splitlines()
    ['id,text', '1,"says ""no"", leaves"']
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def rank_tables(ranks: Mapping[str, Ranks], videos: int) -> dict[str, str]:
    """The recall curve and the rank histogram as CSV, by file name."""
    curves = [recall_curve(ranks_Q, videos).tolist() for ranks_Q in ranks.values()]
    bins = rank_bins(videos)
    counts = [rank_histogram(ranks_Q, bins) for ranks_Q in ranks.values()]
    return {
        "recall_curve.csv": to_csv(["k", *ranks], zip(range(1, videos + 1), *curves, strict=True)),
        "rank_histogram.csv": to_csv(
            ["first_rank", "last_rank", *ranks],
            [(*span, *row) for span, row in zip(bins, zip(*counts, strict=True), strict=True)],
        ),
    }


def caption_table(
    captions: Sequence[Caption],
    ranks: Mapping[str, Ranks],
    predicted: Mapping[str, Moment],
    moments: Mapping[str, TrueMoment],
) -> str:
    """Every caption as CSV: ranks, outcome of fusion, and the annotated and predicted moment in seconds."""
    outcomes = [[OUTCOMES[index]] for index in fusion_outcomes(ranks)] if len(ranks) > 1 else [[]] * len(captions)
    header = ["caption_id", "video_id", "caption", *(f"rank_{name}" for name in ranks)]
    header += ["fused_is"] if len(ranks) > 1 else []
    header += ["true_start", "true_end", "found_start", "found_end", "iou"]
    rows = []
    for index, caption in enumerate(captions):
        row = [caption.id, caption.video_id, caption.text, *(int(ranks_Q[index]) for ranks_Q in ranks.values())]
        times: list[Any] = [""] * 5
        if caption.id in predicted:
            found, true = predicted[caption.id], moments[caption.id]
            overlap = iou((found.start, found.end), true.span)
            times = [true.start, true.end, found.start * true.duration, found.end * true.duration, overlap]
        rows.append([*row, *outcomes[index], *times])
    return to_csv(header, rows)


def group_table(breakdown: Breakdown) -> str:
    """A breakdown as CSV."""
    names = list(next((group.sumr for group in breakdown.groups if group.captions), {}))
    header = ["group", "captions", *(f"sumr_{name}" for name in names), *(f"error_{name}" for name in names)]
    rows = [
        [group.label, group.captions, *(part.get(name, "") for part in (group.sumr, group.error) for name in names)]
        for group in breakdown.groups
    ]
    return to_csv(header, rows)


def failure_table(failures: Sequence[Failure]) -> str:
    """The worst captions as CSV, one row for each video that outranks theirs, and whether labels call it right."""
    names = list(failures[0].ranks) if failures else []
    header = ["caption_id", "caption", *(f"rank_{name}" for name in names), "score"]
    header += ["winner", "winner_score", "winner_captions", "winner_is_right"]
    rows = [
        [
            *(failure.caption.id, failure.caption.text, *failure.ranks.values(), failure.right.score),
            *(winner.video_id, winner.score, " | ".join(caption.text for caption in winner.captions)),
            {True: "yes", False: "no", None: ""}[winner.is_right],
        ]
        for failure in failures
        for winner in failure.winners
    ]
    return to_csv(header, rows)


def timeline_table(caption: Caption, videos: Iterable[Timelines]) -> str:
    """The timelines of one caption in several videos as CSV; time is the centre of a frame, 0 to 1 of the video."""
    rows = [
        [caption.id, video.video_id, name, (frame + 0.5) / len(scores_T), score]
        for video in videos
        for name, scores_T in video.scores.items()
        for frame, score in enumerate(scores_T.tolist())
    ]
    return to_csv(["caption_id", "video_id", "score", "time", "cosine"], rows)


def cost_table(costs: Sequence[Cost]) -> str:
    """The costs as CSV."""
    return to_csv(["what", "value", "unit", "how"], [(cost.what, cost.value, cost.unit, cost.how) for cost in costs])
