"""The confidence of a search: fitted on held-out captions, stored with the index, and said with answers."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from method import search
from method.data.captions import read_captions
from method.data.dataset_files import DatasetFiles
from method.runtime.errors import InputError
from method.serving.calibration import Calibration
from method.serving.calibration_file import load
from method.serving.index.manifest import read_manifest
from tests.helpers.search_runs import make_searcher
from tests.helpers.small_dataset import SmallDataset, own_log_handlers
from utils import calibrate_search


@dataclass
class World:
    """A checkpoint, and a folder for its indexes."""

    data: SmallDataset
    checkpoint: Path
    indexes: Path
    capsys: pytest.CaptureFixture[str]

    @property
    def flags(self) -> list[str]:
        return ["--eval_ckpt", str(self.checkpoint), "--device", "-1", "--index_dir", str(self.indexes)]

    def calibrate(self, *words: str) -> str:
        with own_log_handlers():
            calibrate_search.main([*self.flags, *words])
        return self.capsys.readouterr().out

    def search(self, *words: str) -> Any:
        with own_log_handlers():
            search.main([*self.flags, "--query_id", "E01#enc#0", "--json", *words])
        return json.loads(self.capsys.readouterr().out)

    def stored(self, split: str = "test") -> Calibration | None:
        manifest = read_manifest(self.indexes)
        return load(manifest.calibration, split) if manifest else None


@pytest.fixture
def world(shared: SmallDataset, one_epoch: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> World:
    return World(shared, one_epoch / "model.ckpt", tmp_path, capsys)


def test_answers_have_the_confidence_that_was_fitted(world: World) -> None:
    before = world.search()
    assert before["confidence"] is before["confident"] is before["note"] is None
    shown = world.calibrate()
    calibration = world.stored()
    assert calibration is not None
    captions = read_captions(world.data.test_txt)
    assert (calibration.dataset, calibration.videos, calibration.queries) == ("demo", 8, len(captions))
    assert f"fitted on {len(captions)} captions searched in 8 videos of demo" in shown
    rows = re.findall(r"^ +[01]\.\d{3} +[01]\.\d{3} +(\d+)$", shown, re.MULTILINE)
    assert sum(map(int, rows)) == len(captions)
    searcher = search.open_searcher(world.checkpoint, device=-1, index_dir=world.indexes)
    right = [searcher.search_caption(caption.id, 1).right_rank == 1 for caption in captions]
    held = sum(own.right * own.queries for own in calibration.reliability)
    assert held == pytest.approx(sum(right))
    answer = world.search()
    assert answer["confidence"] == calibration.confidence(answer["results"][0]["score"])
    assert answer["confident"] is None
    assert {**answer, "confidence": None, "seconds": 0} == {**before, "seconds": 0}
    assert world.search("--min_confidence", "1")["confident"] is False
    assert world.search("--min_confidence", "0.0001")["confident"] is True


def test_the_terminal_says_that_there_is_no_confident_match(world: World) -> None:
    world.calibrate()
    for words, line in (
        (["--min_confidence", "1"], "no confident match: at such a score, "),
        ([], "at such a score, "),
    ):
        with own_log_handlers():
            search.main([*world.flags, "--query_id", "E01#enc#0", *words])
        assert world.capsys.readouterr().out.splitlines()[1].startswith(line)


def test_scores_of_another_kind_have_no_confidence(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.calibrate()
    caplog.set_level(logging.INFO)
    assert world.search("--fusion_weight", "0.9")["confidence"] is None
    assert "the calibration is of another checkpoint, fusion weight or precision" in caplog.text
    with pytest.raises(InputError, match=r"--min_confidence 0\.3: .*another checkpoint, fusion weight"):
        world.search("--fusion_weight", "0.9", "--min_confidence", "0.3")
    world.calibrate("--fusion_weight", "0.9")
    assert world.search("--fusion_weight", "0.9")["confidence"] is not None


def test_a_larger_collection_is_noted(world: World) -> None:
    world.calibrate()
    answer = world.search("--split", "both")
    assert answer["confidence"] is not None
    assert answer["note"] == (
        "the confidence is that of a search in 8 videos of demo; first results are wrong more often than it says"
    )
    world.calibrate("--split", "both")
    calibration = world.stored("both")
    assert calibration is not None
    assert (calibration.videos, calibration.queries) == (20, len(read_captions(world.data.test_txt)))
    assert world.search("--split", "both")["note"] is None


def test_training_captions_are_never_used(world: World) -> None:
    with pytest.raises(InputError, match="--split train: no captions of the evaluated split describe these videos"):
        world.calibrate("--split", "train")
    files = DatasetFiles(dataset="demo", root=world.data.root, recipe=None, video_feat_path=None, text_feat_path=None,
                         caption_train_txt=world.data.test_txt, caption_test_txt=world.data.test_txt)  # fmt: skip
    searcher = make_searcher({"E01": ["a"]})
    with pytest.raises(InputError, match="no captions of the evaluated split"):
        calibrate_search.held_out_captions(searcher, files)


@pytest.mark.parametrize(("words", "message"), [
    (["--min_confidence", "0.5"], r"--min_confidence 0\.5: this search has no calibration; run python utils/index"),
    (["--min_confidence", "1.5"], r"--min_confidence 1\.5: expected 0 to 1"),
    (["--min_confidence", "nan"], "--min_confidence nan: expected 0 to 1"),
    (["--offset", "-1"], "--offset -1: expected at least 0"),
    (["--like", "E01@3"], "--query_id and --like given, expected one of them"),
])  # fmt: skip
def test_mistakes_are_named(world: World, words: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        world.search(*words)
