"""ranks.csv: every caption of an evaluation with the rank of its video and the video that competes with it."""

from __future__ import annotations

import codecs
import csv
import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from method.evaluation.metrics import Ranks
from method.evaluation.ranking import Evaluation
from method.evaluation.winners import Winners
from method.runtime.errors import InputError, shown
from method.runtime.files import atomic_writer, read_text
from method.runtime.run_folder import RANKS

_CAPTION = ["caption_id", "video_id", "caption"]
_RANK = "rank_"


@dataclass(frozen=True)
class RankTable:
    """What ranks.csv says: captions, their videos and sentences, and score name -> ranks (Q,)."""

    caption_ids: list[str]
    video_ids: list[str]
    texts: list[str]
    ranks: dict[str, Ranks]


def write_ranks(path: Path, evaluation: Evaluation) -> None:
    """Write one line for each caption, atomically and line by line.

    The columns are caption_id, video_id, caption, and for each score rank_NAME, score_NAME (of the caption's video),
    winner_NAME (the best other video, empty if there is none) and winner_score_NAME. The video is first where its score
    is above that of the winner. Scores are written so that reading them as float32 gives them back exactly.
    """
    per_score = ("rank", "score", "winner", "winner_score")
    with atomic_writer(path) as file:
        text = codecs.getwriter("utf-8")(file, "backslashreplace")
        # All text is quoted: Python before 3.13 quotes a carriage return only where lines end with one.
        writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
        writer.writerow([*_CAPTION, *(f"{column}_{name}" for name in evaluation.ranks for column in per_score)])
        others = [_winner_cells(winners, evaluation.video_ids) for winners in evaluation.winners.values()]
        for index, caption in enumerate(evaluation.queries.captions):
            cells: list[Any] = [caption.id, caption.video_id, caption.text]
            for ranks_Q, own in zip(evaluation.ranks.values(), others, strict=True):
                cells += [int(ranks_Q[index]), *next(own)]
            writer.writerow(cells)


def _winner_cells(winners: Winners, video_ids: list[str]) -> Iterator[tuple[float, str, float | str]]:
    """Score of the right video, and id and score of the best other one, caption by caption."""
    columns = (values_Q.numpy() for values_Q in (winners.right_Q, winners.other_Q, winners.other_score_Q))
    for right, other, other_score in zip(*columns, strict=True):
        winner = (video_ids[other], _nine_digits(other_score)) if other >= 0 else ("", "")
        yield (_nine_digits(right), *winner)


def _nine_digits(score: np.float32) -> float:
    """A float32 with as many digits as tell it from all others."""
    return float(f"{score:.9g}")


def read_ranks(path: Path) -> RankTable:
    """Read a ranks.csv; further columns are ignored.

    InputError for a file that is missing, not text or without captions, a column that is missing or occurs twice, a
    line that is cut off, a caption that occurs twice, and a rank that is not a whole number from 1.
    """
    reader = csv.reader(io.StringIO(read_text(path), newline=""))
    try:
        header, *lines = [line for line in reader if line]
    except (csv.Error, ValueError) as error:
        reason = error if isinstance(error, csv.Error) else "empty"
        raise InputError(f"{path}: not a table of ranks ({reason})") from error
    names = [column.removeprefix(_RANK) for column in header if column.startswith(_RANK)]
    twice = [column for column, count in Counter(header).items() if count > 1]
    if twice:
        raise InputError(f"{path}: column {shown(twice[0])} occurs twice")
    missing = [column for column in _CAPTION[:2] if column not in header] + ([] if names else [f"{_RANK}NAME"])
    if missing:
        raise InputError(f"{path}: no column {', '.join(missing)}, expected the {RANKS} of an evaluation")
    if not lines:
        raise InputError(f"{path}: no captions")
    for line in lines:
        if len(line) != len(header):
            raise InputError(f"{path}: {len(line)} columns in the line of {shown(line[0])}, "
                f"expected {len(header)}; is the file cut off?")  # fmt: skip
    columns = dict(zip(header, map(list, zip(*lines, strict=True)), strict=True))
    caption_ids = columns["caption_id"]
    if len(set(caption_ids)) < len(caption_ids):
        raise InputError(f"{path}: caption {shown(Counter(caption_ids).most_common(1)[0][0])} occurs twice")
    ranks = {name: _whole_numbers(path, caption_ids, columns[_RANK + name]) for name in names}
    return RankTable(caption_ids, columns["video_id"], columns.get("caption", [""] * len(caption_ids)), ranks)


def _whole_numbers(path: Path, caption_ids: list[str], cells: list[str]) -> Ranks:
    for caption_id, cell in zip(caption_ids, cells, strict=True):
        if not (cell.isascii() and cell.isdigit() and int(cell[:18]) > 0 and len(cell) <= 18):
            raise InputError(f"{path}: rank {shown(cell)} of caption {shown(caption_id)}, expected a number from 1")
    return np.array([int(cell) for cell in cells], dtype=np.int64)
