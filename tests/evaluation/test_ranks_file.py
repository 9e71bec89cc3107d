"""ranks.csv: what it says of an evaluation, and that it can be read back."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from method.data.captions import Caption
from method.evaluation import scorer as scorer_module
from method.evaluation.ranking import Evaluation, rank
from method.evaluation.ranks_file import read_ranks, write_ranks
from method.runtime.errors import InputError
from tests.evaluation.corpora import Encoded, random_encoded, settings_of

ODD = ['says "no", leaves', "two\nlines", "a\rb", "=1+1", "naïve 猫", "", "plain"]


def evaluated(tmp_path: Path, encoded: Encoded) -> Evaluation:
    queries = encoded.queries()
    captions = [replace(own, text=ODD[place % len(ODD)]) for place, own in enumerate(queries.captions)]
    settings = settings_of(0.3, branches=encoded.frames)
    return rank(encoded.corpus(), replace(queries, captions=captions), settings, tmp_path)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("branches", [("action", "object"), ("audio",)])
def test_every_column_is_that_of_the_scores(
    branches: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scorer_module, "_MAX_QUERY_BLOCK", 7)
    evaluation = evaluated(tmp_path, random_encoded(12, 30, 5, branches=branches))
    write_ranks(tmp_path / "ranks.csv", evaluation)
    rows = rows_of(tmp_path / "ranks.csv")
    assert len(rows) == 30
    assert evaluation.scores is not None
    for index, (row, caption) in enumerate(zip(rows, evaluation.queries.captions, strict=True)):
        assert (row["caption_id"], row["video_id"], row["caption"]) == (caption.id, caption.video_id, caption.text)
        right = evaluation.video_ids.index(caption.video_id)
        for name, scores in evaluation.scores.items():
            own = scores[index]
            others = {video: own[place] for place, video in enumerate(evaluation.video_ids) if place != right}
            best = max(others, key=lambda video: others[video])
            assert int(row[f"rank_{name}"]) == (own >= own[right]).sum()
            assert np.float32(row[f"score_{name}"]) == own[right]
            assert row[f"winner_{name}"] == best
            assert np.float32(row[f"winner_score_{name}"]) == others[best]


def test_ties_have_the_first_video_as_winner_and_scores_are_left_as_they_are(tmp_path: Path) -> None:
    encoded = Encoded({"action": [torch.ones(1, 1)] * 4}, {"action": torch.ones(4, 1)})
    evaluation = evaluated(tmp_path, encoded)
    assert evaluation.scores is not None
    assert np.array_equal(evaluation.scores["fused"], np.ones((4, 4)))
    assert evaluation.winners["fused"].other_Q.tolist() == [1, 0, 0, 0]
    assert evaluation.ranks["fused"].tolist() == [4] * 4


def test_a_single_video_has_no_other(tmp_path: Path) -> None:
    write_ranks(tmp_path / "ranks.csv", evaluated(tmp_path, random_encoded(1, 2, 3)))
    for row in rows_of(tmp_path / "ranks.csv"):
        assert (row["rank_fused"], row["winner_fused"], row["winner_score_fused"]) == ("1", "", "")


def test_it_is_read_back(tmp_path: Path) -> None:
    evaluation = evaluated(tmp_path, random_encoded(5, 14, 3))
    odd = Caption('x,"\n#enc#0', "v0", ODD[0])
    captions = [odd, *evaluation.queries.captions[1:]]
    write_ranks(tmp_path / "r.csv", replace(evaluation, queries=replace(evaluation.queries, captions=captions)))
    table = read_ranks(tmp_path / "r.csv")
    assert table.caption_ids == [caption.id for caption in captions]
    assert table.video_ids == [caption.video_id for caption in captions]
    assert table.texts == [caption.text for caption in captions]
    assert list(table.ranks) == ["action", "object", "fused"]
    for name, ranks in table.ranks.items():
        assert ranks.tolist() == evaluation.ranks[name].tolist()


def test_a_failed_write_leaves_the_file_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluation: Any = evaluated(tmp_path, random_encoded(3, 6, 3))
    write_ranks(tmp_path / "ranks.csv", evaluation)
    before = (tmp_path / "ranks.csv").read_bytes()

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("method.runtime.files.flush_to_disk", full)
    with pytest.raises(OSError, match="No space left"):
        write_ranks(tmp_path / "ranks.csv", evaluation)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("ranks.csv", before)]


GOOD = "caption_id,video_id,rank_fused\na,v,1\n"


@pytest.mark.parametrize(("content", "message"), [
    ("", "not a table of ranks (empty)"),
    ("caption_id,video_id,rank_fused\n", "no captions"),
    ("caption_id,rank_fused\na,1\n", "no column video_id"),
    ("caption_id,video_id,fused\na,v,1\n", "no column rank_NAME"),
    ("caption_id,video_id,rank_fused,rank_fused\na,v,1,2\n", "column 'rank_fused' occurs twice"),
    (GOOD + "b,v\n", "2 columns in the line of 'b', expected 3; is the file cut off?"),
    (GOOD + "a,v,2\n", "caption 'a' occurs twice"),
    (GOOD + "b,v,0\n", "rank '0' of caption 'b', expected a number from 1"),
    (GOOD + "b,v,-2\n", "rank '-2'"),
    (GOOD + "b,v,1.5\n", "rank '1.5'"),
    (GOOD + "b,v,²\n", "rank '²'"),
    (GOOD + f"b,v,{'9' * 5000}\n", "rank '999"),
    (GOOD + f'b,v,"{"x" * 200_000}"\n', "not a table of ranks (field larger"),
], ids=range(13))  # fmt: skip
def test_files_that_are_refused(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "ranks.csv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError) as raised:
        read_ranks(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert message in str(raised.value)


def test_tables_that_a_spreadsheet_saved_are_read(tmp_path: Path) -> None:
    path = tmp_path / "ranks.csv"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode() + b"\r\n")
    table = read_ranks(path)
    assert (table.caption_ids, table.texts, table.ranks["fused"].tolist()) == (["a"], [""], [1])
    with pytest.raises(InputError, match=r"nowhere\.csv: no such file"):
        read_ranks(tmp_path / "nowhere.csv")
