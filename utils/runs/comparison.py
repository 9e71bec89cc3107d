"""Two rankings of the same captions compared: recalls, captions won and lost, and those that changed most.

Letters: Q captions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from method.evaluation.intervals import Difference, hits_at_each, paired_differences
from method.evaluation.metrics import FUSED, RECALLS, Ranks, retrieval_metrics
from method.evaluation.ranks_file import RankTable
from method.runtime.errors import InputError

RANK = "medr"  # the line of a comparison that counts by rank


@dataclass(frozen=True)
class Line:
    """One metric of one score: in the first run, in the second, and captions for which the second is better or worse.

    By R@K a caption is better if its video is among the first K in the second run only, by SumR if it is so for more
    K, by the median rank if its rank is lower. difference: None for the median rank, or captions of a single video.
    """

    score: str
    metric: str
    first: float
    second: float
    difference: Difference | None
    better: int
    worse: int
    same: int


@dataclass(frozen=True)
class Change:
    """A caption whose rank differs between two runs."""

    caption_id: str
    text: str
    first: int
    second: int


@dataclass(frozen=True)
class Comparison:
    """A run compared with the first; `changes`: captions by how much their rank changed, better ones first."""

    run: Path
    lines: list[Line]
    better: list[Change]
    worse: list[Change]
    left_out: list[str]


def compare(first: RankTable, second: RankTable, paths: tuple[Path, Path], changed: int) -> Comparison:
    """Compare the second run with the first, with at most `changed` captions that became better, and worse.

    InputError when they do not evaluate the same captions, or have no score in common.
    """
    order = _order(first, second, paths)
    ranks = {name: (own, second.ranks[name][order]) for name, own in first.ranks.items() if name in second.ranks}
    if not ranks:
        raise InputError(f"{paths[1]}: scores {', '.join(second.ranks)}, expected one of {', '.join(first.ranks)}")
    lines = [line for name, own in ranks.items() for line in _lines(name, *own, first.video_ids)]
    # By the ratio of the ranks: from 20 to 1 is as much as from 400 to 20.
    main = ranks.get(FUSED, [*ranks.values()][-1])
    factor_Q = np.log(main[0] / main[1])
    by_factor = np.argsort(-factor_Q, kind="stable").tolist()
    texts = [a or second.texts[place] for a, place in zip(first.texts, order, strict=True)]
    changes = [
        Change(first.caption_ids[place], texts[place], int(main[0][place]), int(main[1][place])) for place in by_factor
    ]
    return Comparison(
        paths[1],
        lines,
        [own for own in changes[:changed] if own.second < own.first],
        [own for own in changes[::-1][:changed] if own.second > own.first],
        sorted(first.ranks.keys() ^ second.ranks.keys()),
    )


def _order(first: RankTable, second: RankTable, paths: tuple[Path, Path]) -> list[int]:
    """Place in the second run of each caption of the first."""
    place_of = {name: place for place, name in enumerate(second.caption_ids)}
    missing = [name for name in first.caption_ids if name not in place_of]
    more = sorted(place_of.keys() - set(first.caption_ids), key=lambda name: place_of[name])
    if missing or more:
        found = [
            f"{len(own)} {what}, the first {own[0]!r}" for own, what in ((missing, "missing"), (more, "more")) if own
        ]
        raise InputError(f"{paths[1]}: not the {len(first.caption_ids)} captions of {paths[0]}: {'; '.join(found)}")
    order = [place_of[name] for name in first.caption_ids]
    moved = [
        name
        for name, video, place in zip(first.caption_ids, first.video_ids, order, strict=True)
        if second.video_ids[place] != video
    ]
    if moved:
        raise InputError(f"{paths[1]}: {len(moved)} captions have another video than in {paths[0]}, "
            f"the first {moved[0]!r}")  # fmt: skip
    return order


def _lines(name: str, first_Q: Ranks, second_Q: Ranks, video_ids: Sequence[str]) -> list[Line]:
    differences = paired_differences(first_Q, second_Q, video_ids) or {}
    first, second = retrieval_metrics(first_Q), retrieval_metrics(second_Q)
    gains = dict(zip(RECALLS, (hits_at_each(second_Q) - hits_at_each(first_Q)).T, strict=True))
    gains[RANK] = (first_Q - second_Q).astype(np.float64)
    return [
        Line(name, key, first[key], second[key], differences.get(key),
             int((gain_Q > 0).sum()), int((gain_Q < 0).sum()), int((gain_Q == 0).sum()))
        for key, gain_Q in gains.items()
    ]  # fmt: skip
