from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import search
from method.serving.engines import Found, Ranking
from method.serving.engines.exact import ExactEngine


def test_queries_find_the_video_that_they_are_near_to(tmp_path: Path) -> None:
    corpus = search.write_corpus(tmp_path, 40, 8, 64, torch.bfloat16)
    queries = search.make_queries(corpus, 8)
    right = (torch.randint(40 * 8, (search.QUERIES,), generator=torch.Generator().manual_seed(1)) // 8).tolist()
    rankings = ExactEngine(corpus, search.SETTINGS, torch.device("cpu")).search(queries, 1)
    assert [ranking.best[0].index for ranking in rankings] == right


def test_recall_is_the_share_of_the_exact_results() -> None:
    found = [Ranking([Found(index, {}, {}) for index in own]) for own in ([1, 2], [3, 4])]
    exact = [Ranking([Found(index, {}, {}) for index in own]) for own in ([2, 1], [4, 5])]
    assert search.recall(found, exact) == 0.75


def test_a_row_has_a_cell_for_each_column(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "DEVICE", torch.device("cpu"))
    search.main(["--videos", "12", "--frames", "4", "--width", "16", "--rounds", "1", "--row"])
    cells = capsys.readouterr().out.strip().strip("|").split("|")
    assert len(cells) == len(search.HEAD)
    assert cells[0].strip() == "12"
