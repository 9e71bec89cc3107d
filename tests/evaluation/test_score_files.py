"""Scores on disk equal those in memory; a full disk is an error."""

import errno
import os
import resource
from pathlib import Path

import numpy as np
import pytest
import torch

from method.evaluation.ranking import rank
from method.evaluation.score_files import ScoreFiles
from method.evaluation.scorer import Scorer
from tests.evaluation.corpora import random_encoded, settings_of


def test_scores_on_disk_equal_those_in_memory(tmp_path: Path) -> None:
    encoded = random_encoded(videos=300, queries=200, longest=4)
    corpus, queries = encoded.corpus(), encoded.queries()
    blocks = list(Scorer(corpus, settings_of(0.3, 1)).blocks(queries))
    assert len(blocks) > 1
    kept = rank(corpus, queries, settings_of(0.3, 1), tmp_path).scores
    assert kept is not None
    for name in ("action", "object", "fused"):
        assert kept[name].dtype == np.float32
        np.testing.assert_array_equal(kept[name], torch.cat([scores[name] for _, scores in blocks]))
    assert list(tmp_path.iterdir()) == []


def test_blocks_can_be_written_in_any_order(tmp_path: Path) -> None:
    scores_QV = torch.arange(12, dtype=torch.float32).view(4, 3)
    kept = ScoreFiles(tmp_path, 4, 3)
    for first in (3, 0, 2, 1):
        kept.write(first, {"fused": scores_QV[first : first + 1]})
    np.testing.assert_array_equal(kept.read()["fused"], scores_QV)


def test_a_full_disk_is_named_and_leaves_no_file(tmp_path: Path) -> None:
    encoded = random_encoded(videos=300, queries=200, longest=4)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300 * 100 * 4, hard))
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)) as caught:
            rank(encoded.corpus(), encoded.queries(), settings_of(0.3, 1), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.filename == str(tmp_path)
    assert list(tmp_path.iterdir()) == []
