from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from method.evaluation.corpus import Corpus
from method.evaluation.scorer import ScoringSettings
from method.runtime.errors import InputError
from method.serving.engines.coarse import PARTS, CoarseEngine, pooled
from method.serving.engines.exact import ExactEngine
from tests.evaluation.corpora import BRANCHES, Encoded, random_encoded, settings_of

CPU = torch.device("cpu")
SETTINGS = settings_of(0.3)


def scenes(videos: int = 200) -> Encoded:
    """Videos whose frames are alike, and queries that are like a frame of one of them."""
    generator = torch.Generator().manual_seed(0)
    frames: dict[str, list[Tensor]] = {}
    vectors: dict[str, Tensor] = {}
    lengths = torch.randint(1, 30, (videos,), generator=generator).tolist()
    for name in BRANCHES:
        own = [torch.randn(1, 32, generator=generator) + torch.randn(n, 32, generator=generator) for n in lengths]
        frames[name] = [F.normalize(rows, dim=-1) for rows in own]
        vectors[name] = torch.stack([rows[0] for rows in frames[name][:40]])
    return Encoded(frames, vectors)


def test_with_all_videos_as_candidates_it_is_the_exact_engine() -> None:
    encoded = random_encoded(videos=30, queries=9, longest=9)
    exact = ExactEngine(encoded.corpus(), SETTINGS, CPU).search(encoded.vectors, 7)
    for corpus in (encoded.corpus(), encoded.corpus().select(range(30))):
        engine = CoarseEngine(corpus, SETTINGS, CPU, candidates=30)
        assert engine.search(encoded.vectors, 7, [3] * 9) == exact
        assert engine.video_ids == encoded.video_ids
    assert CoarseEngine(encoded.corpus(), SETTINGS, CPU, candidates=1).search(encoded.vectors, 8) != []


def test_few_candidates_find_most_of_the_best() -> None:
    encoded = scenes()
    exact = ExactEngine(encoded.corpus(), SETTINGS, CPU).search(encoded.vectors, 5)
    shares = []
    for candidates in (20, 60):
        found = CoarseEngine(encoded.corpus(), SETTINGS, CPU, candidates).search(encoded.vectors, 5)
        for own, best in zip(found, exact, strict=True):
            scores = {video.index: video for video in best.best}
            assert all(video == scores[video.index] for video in own.best if video.index in scores)
            assert len({video.index for video in own.best}) == 5
        pairs = [(own.best, best.best) for own, best in zip(found, exact, strict=True)]
        shares.append(sum(len({v.index for v in own} & {v.index for v in best}) for own, best in pairs) / 200)
    assert 0.5 < shares[0] < shares[1]
    assert shares[1] > 0.9


def test_means_are_those_of_equal_parts() -> None:
    rows = F.normalize(torch.randn(10, 8), dim=-1)
    corpus = Encoded({"action": [rows, rows[:3], rows[:1]]}, {"action": rows}).corpus()
    means = pooled(corpus.frames["action"])
    assert means.lengths == (PARTS, 3, 1)
    expected = torch.stack([rows[:3].mean(0), rows[3:6].mean(0), rows[6:8].mean(0), rows[8:].mean(0)])
    torch.testing.assert_close(means.video(0), F.normalize(expected, dim=-1), atol=4e-3, rtol=0)
    torch.testing.assert_close(means.video(1), rows[:3], atol=4e-3, rtol=0)


def test_scores_that_are_not_finite_are_refused() -> None:
    encoded = random_encoded(videos=5, queries=1, longest=3)
    encoded.frames["object"][2][0] = torch.nan
    with pytest.raises(InputError, match="the object scores are not finite"):
        CoarseEngine(encoded.corpus(), SETTINGS, CPU, 2).search(encoded.vectors, 2)


def test_a_head_of_its_own_is_refused() -> None:
    settings = ScoringSettings({"action": 1.0}, heads={"action": lambda frames, queries: pytest.fail(str(queries))})
    with pytest.raises(InputError, match="the branch action does not score by its best frame; expected --engine exact"):
        CoarseEngine(Corpus([], {}), settings, CPU, 5)
