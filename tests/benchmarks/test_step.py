"""Steps fed by a loader have the edited captions of their index, with and without workers."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from benchmarks import measure
from benchmarks import step as step_benchmark
from benchmarks.step import LAUNCH
from method.data.batch import EpochIndices, VideoBatch
from method.data.captions import Caption
from method.data.edits import EditedQueries, Kind, PreparedEdits
from method.training.loop import Training
from tests.helpers.small_models import random_rows, random_streams

CPU = torch.device("cpu")
CAPTIONS = tuple(Caption(f"v{video}#enc#0", f"v{video}", "") for video in range(3))


class Edits:
    """An edit of each caption, different in every epoch."""

    def count_editable(self) -> dict[Kind, int]:
        return {}

    def prepare(self, captions: Sequence[Caption], epoch: int) -> PreparedEdits:
        owners = range(len(captions))
        rows = random_rows([2] * 2 * len(captions), LAUNCH.query_width, seed=epoch)
        return PreparedEdits.of(rows, range(len(rows)), {"action": owners, "object": owners})

    def queries(self, prepared: PreparedEdits, device: torch.device) -> dict[Kind, EditedQueries | None]:
        return prepared.with_features(prepared.rows)


def small_batch() -> VideoBatch:
    streams = random_streams(LAUNCH, [4, 2, 3], [1, 3, 2])
    words = random_rows([2, 3, 1], LAUNCH.query_width, seed=1)
    return VideoBatch(("v0", "v1", "v2"), streams, CAPTIONS, words, torch.arange(3))


@pytest.mark.parametrize("workers", [0, 1])
def test_steps_are_fed(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_benchmark, "DEVICE", CPU)
    seen: list[set[str]] = []
    real = Training.step
    monkeypatch.setattr(Training, "step", lambda training, batch: seen.append(set(real(training, batch))))
    for source in (None, Edits()):
        step = step_benchmark.fed_step(small_batch(), source, "off", workers)
        step()
        step()
    terms = {"action/triplet", "action/nce", "object/triplet", "object/nce"}
    with_edits = terms | {"action/negative_queries", "object/negative_queries"}
    assert seen == [terms, terms, with_edits, with_edits]


def test_edits_change_from_step_to_step() -> None:
    dataset = step_benchmark.RepeatedBatch(small_batch(), Edits())
    one, other = (dataset.__getitems__(EpochIndices(0, [index])).edits for index in (3, 4))
    assert one is not None
    assert other is not None
    assert not torch.equal(one.rows.values, other.rows.values)


def test_the_step_is_timed_after_both_programs_agree(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in (step_benchmark, measure):
        monkeypatch.setattr(module, "DEVICE", CPU)
    monkeypatch.setattr(step_benchmark, "VIDEOS", 3)
    monkeypatch.setattr(step_benchmark, "CAPTIONS", 5)
    precision = torch.get_float32_matmul_precision()
    step_benchmark.main(["--lengths", "short", "--rounds", "1"])
    torch.set_float32_matmul_precision(precision)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [["naive", "median"], ["ours", "median"]]
