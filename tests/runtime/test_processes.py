"""Several processes train one model to the result of one process, and lose nothing whatever happens to one of them."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from method.data.batch import EpochBatches
from method.data.captions import read_captions
from method.evaluation.fusion_weight import FUSION_WEIGHTS
from method.evaluation.metrics import ranks_of, retrieval_metrics
from method.runtime.errors import InputError, PeerFailed
from method.runtime.files import read_json
from method.runtime.hardware import choose_device
from method.runtime.process_group import joined_processes
from method.runtime.processes import expect_one_process
from method.runtime.run_folder import REPOSITORY
from method.serving.index.snapshot import Snapshot
from method.training.checkpoint_file import read_checkpoint
from method.training.loop import TRAINED
from tests.faults.programs import Outcome, Program, Starter
from tests.helpers.distributed_losses import CASES
from tests.helpers.runs import EPOCHS, assert_same_run
from tests.helpers.small_dataset import QUERY_WIDTH, SmallDataset, history, metrics, own_log_handlers, run_train
from tests.helpers.small_negatives import damage
from tests.helpers.tiny_text_encoder import make_text_encoder
from utils import cache_negatives, index

LONG = ["--n_epoch", str(EPOCHS), "--fusion_weight", "fitted"]
Events = Mapping[int, Sequence[Sequence[Any]]]


class Group:
    """Starts processes that train together, forked from one that has the slow imports behind it."""

    def __init__(self, starter: Starter) -> None:
        self._starter = starter

    def start(self, count: int, module: str, arguments: Sequence[str], events: Events | None = None) -> list[Program]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        settings = [str(count), str(port), json.dumps(events or {}), module]
        return [
            self._starter.start("tests.helpers.distributed_worker", [str(rank), *settings, *arguments])
            for rank in range(count)
        ]

    def run(self, count: int, module: str, arguments: Sequence[str], events: Events | None = None) -> list[Outcome]:
        outcomes = [program.wait() for program in self.start(count, module, arguments, events)]
        for outcome in outcomes:
            outcome.expect_no_traceback()
        return outcomes

    def train(self, arguments: Sequence[str], events: Events | None = None) -> list[Outcome]:
        return self.run(2, "method.train", arguments, events)


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Group]:
    with Starter(tmp_path_factory.mktemp("programs")) as starter:
        yield Group(starter)


def flags(data: SmallDataset, *more: str) -> list[str]:
    """A short training on whatever torchrun gives."""
    given = data.flags(*more)
    index = given.index("--device")
    return given[:index] + given[index + 2 :]


@pytest.fixture(scope="module")
def reference(group: Group, shared: SmallDataset) -> Path:
    """A run of two processes that was never interrupted, to be left as it is."""
    done = group.train(flags(shared, *LONG, "--description", "two", "--save_scores"))
    assert [outcome.status for outcome in done] == [0, 0], done[0].show()
    assert "metrics in" in done[0].log
    assert (done[1].log, done[1].output) == ("", "")  # only rank 0 logs
    return shared.results / "two"


# What is learned


def test_losses_and_gradients_are_those_of_one_process(group: Group, tmp_path: Path) -> None:
    """Each compares what it has, without dropout; fewer videos than processes included."""
    count = 3
    for outcome in group.run(count, "tests.helpers.distributed_losses", [str(tmp_path)]):
        assert outcome.status == 0, outcome.show()
    for rank in range(count):
        differences = read_json(tmp_path / f"{rank}.json")
        assert differences.keys() == CASES.keys()
        assert max(differences.values()) < 1e-5, differences


def test_three_processes_learn_what_one_does(group: Group, shared: SmallDataset) -> None:
    """Without dropout, with edited captions, and with a last batch of two videos; the random negatives are the same.

    Workers prepare the edits of the three.
    """
    encoder = shared.root / "encoder of three"
    make_text_encoder(encoder, [caption.text for caption in read_captions(shared.train_txt)], width=QUERY_WIDTH)
    options = ["--no_cross_branch_fusion", "--drop", "0", "--input_drop", "0", "--hard_negative_start_epoch", "1",
        "--neg_query_loss", "both", "--neg_query_loss_weight", "0.5", "--neg_action_num", "2", "--neg_object_num", "3",
        "--text_encoder", str(encoder), "--ema", "0.3"]  # fmt: skip
    alone = run_train(shared.flags(*options, "--description", "alone"))
    done = group.run(3, "method.train", flags(shared, *options, "--num_workers", "1", "--description", "three"))
    assert done[0].status == 0, done[0].show()
    for ours, theirs in zip(history(shared.results / "three"), history(alone), strict=True):
        assert ours["losses"] == pytest.approx(theirs["losses"], rel=1e-4)
    found, expected = (read_checkpoint(run / "last.ckpt") for run in (shared.results / "three", alone))
    for part in ("model", TRAINED):  # the average of the weights, and the weights
        for name, weight in expected[part].items():
            torch.testing.assert_close(found[part][name], weight, atol=2e-4, rtol=1e-3)


def test_all_processes_start_with_the_weights_of_one(group: Group, shared: SmallDataset, tmp_path: Path) -> None:
    """Initial weights from data included, which the first process computes."""
    flags_of_all = flags(shared, "--n_epoch", "1", "--input_init", "whitened", "--fusion_init", "aligned")
    paths = []
    for count in (1, 2):
        own = [tmp_path / f"{rank} of {count}" for rank in range(count)]
        events = {rank: [["save_weights_at_step", 0, str(path)]] for rank, path in enumerate(own)}
        done = group.run(count, "method.train", [*flags_of_all, "--description", f"initial by {count}"], events)
        assert [outcome.status for outcome in done] == [0] * count, done[0].show()
        paths += own
    alone, first, second = (torch.load(path, weights_only=True) for path in paths)
    assert alone.keys() == first.keys() == second.keys()
    for name, weight in alone.items():
        assert torch.equal(first[name], weight), name
        assert torch.equal(second[name], weight), name


def test_two_processes_fit_the_fusion_weight_to_all_captions(reference: Path) -> None:
    with np.load(reference / "scores.npz") as scores:
        action, object_ = (torch.from_numpy(scores[name]) for name in ("action", "object"))
        owners = np.array([caption.split("#")[0] for caption in scores["query_ids"]])
        target_Q = torch.from_numpy((owners[:, None] == scores["video_ids"]).argmax(1))
    sumr = {
        weight: retrieval_metrics(ranks_of(weight * action + (1 - weight) * object_, target_Q).numpy())["sumr"]
        for weight in FUSION_WEIGHTS
    }
    result = read_json(reference / "metrics.json")
    assert sumr[result["weights"]["action"]] == max(sumr.values())
    assert result["fused"]["sumr"] == max(sumr.values())


# What a run leaves


def test_no_process_exits_before_the_first_has_written_everything(group: Group, shared: SmallDataset) -> None:
    """If one failed on its way out, torchrun would end the first."""
    arguments = flags(shared, "--n_epoch", "1", "--description", "late")
    first, second = group.start(2, "method.train", arguments, {0: [["report_late", 2.0]]})
    assert second.wait().status == 0
    assert (shared.results / "late" / "metrics.json").exists()
    assert first.wait().status == 0


def test_two_processes_leave_what_one_leaves(reference: Path, finished: Path) -> None:
    assert {path.name for path in reference.iterdir()} == {path.name for path in finished.iterdir()}
    ours, theirs = (read_json(run / "metrics.json") for run in (reference, finished))
    assert ours.keys() == theirs.keys()
    assert (ours["videos"], ours["queries"]) == (8, 20)
    assert (ours["environment"]["processes"], theirs["environment"]["processes"]) == (2, 1)
    assert [row["epoch"] for row in history(reference)] == list(range(EPOCHS))
    assert len(list((reference / "tensorboard").iterdir())) == len(list((finished / "tensorboard").iterdir()))
    random = read_checkpoint(reference / "last.ckpt")["random"]
    assert not torch.equal(random[0]["torch"], random[1]["torch"])  # each has a dropout of its own


def ranked(run: Path) -> list[dict[str, str]]:
    """The lines of ranks.csv."""
    with (run / "ranks.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("precision", ["off", "bf16"])
def test_several_processes_evaluate_to_the_last_bit_as_one(
    group: Group, shared: SmallDataset, reference: Path, precision: str, tmp_path: Path
) -> None:
    checkpoint = ["--eval_ckpt", str(reference / "model.ckpt"), "--eval_amp", precision]
    checkpoint += ["--multi_gt", str(shared.write_labels(tmp_path / "labels.jsonl", skip=3)), "--multi_gt_subset"]
    checkpoint += ["--moments", str(shared.write_moments(tmp_path / "moments.jsonl"))]
    name = f"by four {precision}"  # 3 batches of videos and of captions: one process has none
    alone = shared.results / f"{name} less three"
    by_one = group.run(1, "method.evaluate", [*checkpoint, "--save_scores", "--description", alone.name])
    assert by_one[0].status == 0, by_one[0].show()
    done = group.run(4, "method.evaluate", [*checkpoint, "--eval_query_bsz", "7", "--description", name])
    assert [outcome.status for outcome in done] == [0] * 4, done[0].show()
    assert metrics(shared.results / name) == metrics(alone)
    for own, other in zip(*(ranked(run) for run in (shared.results / name, alone)), strict=True):
        scores = [column for column in own if "score_" in column]  # other batches of captions round differently
        assert [float(own.pop(column)) for column in scores] == pytest.approx(
            [float(other.pop(column)) for column in scores], abs=1e-3
        )
        assert own == other
    for also in ("multi_gt", "moments", "vcmr"):
        assert read_json(shared.results / name / "metrics.json")[also] == read_json(alone / "metrics.json")[also]
    if precision == "off":
        with np.load(alone / "scores.npz") as ours, np.load(reference / "scores.npz") as theirs:
            assert all(np.array_equal(ours[key], theirs[key]) for key in ours)


# Signals, kills and errors in one of them


@pytest.mark.parametrize(("events", "statuses", "step"), [
    ({1: [["signal_at_step", 4, signal.SIGTERM]]}, [143, 143], (1, 2)),
    ({rank: [["signal_at_step", 2, signal.SIGINT]] * 2 for rank in (0, 1)}, [130, 130], (0, 3)),  # as torchrun does
    ({1: [["signal_at_evaluation", 3, signal.SIGINT]]}, [130, 130], (3, 0)),  # of the best epoch
    ({1: [["signal_at_step", 7, signal.SIGKILL]]}, [1, -9], (2, 0)),
    ({0: [["signal_at_step", 4, signal.SIGKILL]]}, [-9, 1], (1, 0)),
], ids=["SIGTERM to one", "SIGINT to all", "evaluating the best", "kill", "kill the first"])  # fmt: skip
def test_all_stop_after_the_same_step_and_resume_to_the_same_result(
    group: Group, shared: SmallDataset, reference: Path, events: Events, statuses: list[int], step: tuple[int, int],
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    run = shared.results / f"two {request.node.callspec.id}"
    given = flags(shared, *LONG, "--description", run.name)
    done = group.train(given, events)
    assert [outcome.status for outcome in done] == statuses, done[0].show()
    progress = read_checkpoint(run / "last.ckpt")["progress"]
    assert (progress["epoch"], progress["step"]) == step
    if statuses == [1, -9]:
        assert "the other processes of this training cannot be reached" in done[0].last_line
    elif -9 not in statuses:
        assert (run / "train.log").read_text().endswith(": stopped, saved last.ckpt\n")
        assert done[0].last_line.endswith(f"continue with 2 processes: torchrun ... method/train.py --resume {run}")
    assert done[1].log == ""
    again = group.train([*given, "--resume", "auto"] if -9 in statuses else ["--resume", str(run)])
    assert [outcome.status for outcome in again] == [0, 0], again[0].show()
    assert_same_run(run, reference)


def test_a_finished_run_is_not_changed(group: Group, shared: SmallDataset, reference: Path) -> None:
    before = (reference / "metrics.json").stat().st_mtime_ns
    given = flags(shared, *LONG, "--description", reference.name, "--save_scores")
    done = group.train([*given, "--resume", "auto"])
    assert [outcome.status for outcome in done] == [0, 0], done[0].show()
    assert done[0].log == f"{reference}: the run is finished, nothing to do\n"
    assert (reference / "metrics.json").stat().st_mtime_ns == before


def test_a_process_waiting_for_a_hung_one_can_be_stopped(group: Group, shared: SmallDataset) -> None:
    events = {0: [["set_stop_timeout", 0.3]], 1: [["signal_at_step", 4, signal.SIGSTOP]]}
    first, second = group.start(2, "method.train", flags(shared, "--description", "hangs"), events)
    first.wait_for("epoch 0")
    time.sleep(0.3)
    assert first.is_running
    first.send(signal.SIGTERM)
    assert first.wait().status == 128 + signal.SIGTERM
    second.kill()


def test_bad_features_in_one_process_end_all_with_one_line(group: Group, small: SmallDataset) -> None:
    training = small.videos_of(small.train_txt)
    order = EpochBatches(len(training), 5, seed=7, rank=1, count=2)
    video = training[list(order)[1].indices[0]]  # which the second process reads for the second step
    with h5py.File(small.features, "r+") as videos:
        videos[f"{video}/i3d_feat"][1] = np.nan
    options = ["--feature_cache", "off", "--num_workers", "1", "--description", "bad"]
    first, second = group.train(flags(small, *options))
    assert (first.status, second.status) == (2, 2)
    assert f"'{video}/i3d_feat' row 1 holds NaN" in first.last_line
    assert first.log.count("error") == 1
    assert second.log == ""
    assert not (small.results / "bad" / "last.ckpt").exists()


def test_a_damaged_cache_of_edits_ends_all_with_one_line(group: Group, shared: SmallDataset) -> None:
    encoder, cache = shared.root / "encoder of two", shared.root / "edits of two"
    make_text_encoder(encoder, [caption.text for caption in read_captions(shared.train_txt)], width=QUERY_WIDTH)
    edits = ["--neg_query_loss", "both", "--text_encoder", str(encoder), "--neg_cache", str(cache)]
    with own_log_handlers():
        cache_negatives.main(shared.flags(*edits))
    damage(cache)
    first, second = group.train(flags(shared, *edits, "--num_workers", "1", "--description", "damaged edits"))
    assert (first.status, second.status) == (2, 2)
    assert f"{cache / 'block-00000.rows'}: edit " in first.last_line
    assert first.log.count("error") == 1
    assert second.log == ""


def test_a_non_finite_loss_ends_all_before_the_step(group: Group, shared: SmallDataset) -> None:
    arguments = flags(shared, "--n_epoch", "2", "--description", "non-finite")
    first, second = group.train(arguments, {1: [["nan_in_step", 4]]})
    assert (first.status, second.status) == (2, 2)
    assert first.last_line.startswith("error: epoch 1 step 1: the loss is not finite (")
    assert second.log == ""
    listed = next(line for line in first.log.splitlines() if "captions of the batch: T" in line)
    videos = {caption.split("#")[0] for caption in listed.split("captions of the batch: ")[1].split()}
    assert len(videos) == 5  # those of both


# What is refused


def test_a_run_of_another_number_of_processes_is_not_resumed(reference: Path) -> None:
    run = Path(shutil.copytree(reference, reference.with_name("by one")))
    expected = r"last\.ckpt: a resumed run must keep its number of processes: it was 2, is 1$"
    with pytest.raises(InputError, match=expected):
        run_train(["--resume", str(run), "--device", "-1", "--n_epoch", "4"])


def test_a_batch_needs_a_video_for_each_process(group: Group, shared: SmallDataset) -> None:
    first, second = group.train(flags(shared, "--bsz", "1"))
    assert (first.status, second.status) == (2, 2)
    assert first.log == "error: --bsz 1: expected at least 2, one video per process\n"
    assert second.log == ""


@pytest.mark.parametrize(("flag", "value"), [("device", -1), ("device_ids", [0])])
def test_torchrun_chooses_the_device(flag: str, value: object) -> None:
    given: dict[str, Any] = {"device": None, flag: value}
    with pytest.raises(InputError, match=f"^--{flag} .*: torchrun gives each process its own GPU"):
        choose_device(**given, local_rank=0)


def test_each_process_needs_a_gpu_where_there_are_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    for rank, ends in (("0", InputError), ("1", PeerFailed), ("2", PeerFailed)):  # reported once
        monkeypatch.setenv("LOCAL_RANK", rank)
        words = "^$" if rank > "0" else "^torchrun: 3 processes on a machine with 2 usable GPUs"
        with pytest.raises(ends, match=words), joined_processes():
            pass


@pytest.mark.parametrize("module", ["method.search", "utils.cache_negatives"])
def test_programs_for_one_process_refuse_several(group: Group, module: str) -> None:
    for outcome in group.run(2, module, []):
        assert outcome.status == 2
        assert outcome.log.endswith(" runs in one process; start it without torchrun\n")
        assert outcome.log.count("\n") == 1
        assert not outcome.output


def test_a_single_process_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "4")  # of a cluster that names its machines so, without torchrun
    expect_one_process("search")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    expect_one_process("search")


# Other programs


def test_two_processes_add_to_an_index(group: Group, shared: SmallDataset, one_epoch: Path, tmp_path: Path) -> None:
    words = ["--eval_ckpt", str(one_epoch / "model.ckpt"), "--split", "all", "--index_dir"]
    done = group.run(2, "utils.index", ["add", *words, str(tmp_path / "two")])
    assert [outcome.status for outcome in done] == [0, 0], done[0].show()
    assert "20 videos in 2 segments" in done[0].output
    assert (done[1].log, done[1].output) == ("", "")
    with own_log_handlers():
        index.main(["add", *words, str(tmp_path / "one"), "--device", "-1"])
    opened = [Snapshot.open(tmp_path / name) for name in ("two", "one")]
    ids = shared.videos_of(shared.test_txt)
    corpora = [snapshot.select(ids) for snapshot in opened if snapshot is not None]
    for name, frames in corpora[0].frames.items():
        torch.testing.assert_close(frames.values, corpora[1].frames[name].values, rtol=0, atol=1e-6)
    done = group.run(2, "utils.index", ["add", *words, str(tmp_path / "two")])
    assert "20 videos in 2 segments" in done[0].output
    done = group.run(2, "utils.index", ["list", *words[:2], "--index_dir", str(tmp_path / "two")])
    assert done[0].log.endswith("utils/index.py list runs in one process; start it without torchrun\n")


# With torchrun itself


def test_torchrun(shared: SmallDataset, reference: Path) -> None:
    run = shared.results / "torchrun"
    arguments = flags(shared, *LONG, "--description", run.name)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*torchrun, REPOSITORY / "method" / "train.py", *arguments],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    assert_same_run(run, reference)
