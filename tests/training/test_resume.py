"""Interrupted and resumed runs give the result of an uninterrupted one, or are refused."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from method.config.options import plain, read_options
from method.evaluation.split_evaluator import SplitEvaluator
from method.runtime.errors import InputError, Stopped
from method.runtime.files import read_json, sha256, write_json
from method.runtime.run_folder import RunFolder
from method.training.checkpoint_file import read_checkpoint
from method.training.resume import check_same_options
from tests.helpers.poor_disk import refuse_all
from tests.helpers.runs import EPOCHS, STEPS, Crash, Interruption, assert_same_run, crash, send
from tests.helpers.small_dataset import SmallDataset, history, run_train


@pytest.mark.parametrize("step", [2, 4, 8])
def test_stopped_at_any_step_and_resumed(
    shared: SmallDataset, finished: Path, interrupt: Interruption, step: int
) -> None:
    name = f"stopped{step}"
    number = signal.SIGTERM if step == 4 else signal.SIGINT
    interrupt.at(step, send(number))
    with pytest.raises(Stopped, match=rf"continue with: python method/train\.py --resume .*{name}$") as stopped:
        run_train(shared.flags("--n_epoch", str(EPOCHS), "--description", name))
    assert stopped.value.signal == number
    run = shared.results / name
    progress = read_checkpoint(run / "last.ckpt")["progress"]
    assert (progress["epoch"], progress["step"]) == (step // STEPS, step % STEPS + 1)
    assert not (run / "metrics.json").exists()
    assert (run / "train.log").read_text().endswith(": stopped, saved last.ckpt\n")
    interrupt.over()
    assert run_train(["--resume", str(run), "--device", "-1"]) == run
    assert_same_run(run, finished)


def test_stopped_again_and_again_with_workers(shared: SmallDataset, finished: Path, interrupt: Interruption) -> None:
    flags = shared.flags("--n_epoch", str(EPOCHS), "--description", "again", "--num_workers", "1")
    for _ in range(4):
        interrupt.at(1, send(signal.SIGINT))  # the second step of each start
        with pytest.raises(Stopped):
            run_train(flags)
        flags = ["--resume", str(shared.results / "again"), "--device", "-1"]
    interrupt.over()
    run_train(flags)
    assert_same_run(shared.results / "again", finished)


@pytest.mark.parametrize("evaluation", [0, EPOCHS])
def test_stopped_during_an_evaluation(
    shared: SmallDataset, finished: Path, evaluation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first, and the one that is reported."""
    name, count, real = f"evaluating{evaluation}", itertools.count(), SplitEvaluator.evaluate

    def evaluate(self: Any, *arguments: Any, **named: Any) -> Any:
        if next(count) == evaluation:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, *arguments, **named)

    monkeypatch.setattr(SplitEvaluator, "evaluate", evaluate)
    with pytest.raises(Stopped):
        run_train(shared.flags("--n_epoch", str(EPOCHS), "--description", name, "--save_scores"))
    monkeypatch.undo()
    run = run_train(["--resume", str(shared.results / name), "--device", "-1"])
    assert_same_run(run, finished)


@pytest.mark.parametrize("step", [0, 1, 7])
def test_a_crash_loses_no_more_than_the_steps_since_the_last_save(
    shared: SmallDataset, finished: Path, interrupt: Interruption, step: int
) -> None:
    name = f"crashed{step}"
    interrupt.at(step, crash)
    with pytest.raises(Crash):
        run_train(shared.flags("--n_epoch", str(EPOCHS), "--description", name, "--save_every_steps", "1"))
    run = shared.results / name
    assert (run / "last.ckpt").exists() == (step > 0)
    if step:
        progress = read_checkpoint(run / "last.ckpt")["progress"]
        assert progress["epoch"] * STEPS + progress["step"] == step
    interrupt.over()
    run_train(["--resume", str(run), "--device", "-1", "--save_every_steps", "2"])
    assert_same_run(run, finished)


@pytest.mark.parametrize("lost", ["last.ckpt", "history.jsonl", "tensorboard"])
def test_a_crash_between_two_files(shared: SmallDataset, finished: Path, interrupt: Interruption, lost: str) -> None:
    """Killed at the end of an epoch, before this file was written."""
    name = f"without {lost}"
    interrupt.at(EPOCHS * STEPS - 1, crash)
    with pytest.raises(Crash):
        run_train(shared.flags("--n_epoch", str(EPOCHS), "--description", name))
    path = shared.results / name / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    interrupt.over()
    run_train(["--resume", str(shared.results / name), "--device", "-1"])
    assert_same_run(shared.results / name, finished)


def test_resume_finds_the_latest_unfinished_run(shared: SmallDataset, interrupt: Interruption) -> None:
    flags = shared.flags("--exp_id", "latest", "--n_epoch", "1")
    done = run_train([*flags, "--description", "done"])
    runs = []
    for description in ("older", "newer"):
        interrupt.at(1, send(signal.SIGINT))
        with pytest.raises(Stopped):
            run_train([*flags, "--description", description])
        runs.append(done.parent / description)
    os.utime(runs[0] / "opt.json", (1, 1))
    interrupt.over()
    assert run_train([*flags, "--resume"]) == runs[1]
    assert run_train([*flags, "--resume"]) == runs[0]
    with pytest.raises(InputError, match="--resume: no unfinished run in"):
        run_train([*flags, "--resume"])
    with pytest.raises(InputError, match=r"--resume: no run .*other"):
        run_train([*flags, "--resume", "--description", "other"])


def test_auto_repeats_one_command_until_the_run_is_finished(
    shared: SmallDataset, finished: Path, interrupt: Interruption, caplog: pytest.LogCaptureFixture
) -> None:
    """Killed in its first epoch, stopped later, finished, and started once more, as by a queue."""
    command = shared.flags("--exp_id", "queue", "--n_epoch", str(EPOCHS), "--resume", "auto")
    for step, act, error in ((1, crash, Crash), (STEPS, send(signal.SIGTERM), Stopped)):
        interrupt.at(step, act)
        with pytest.raises(error):
            run_train(command)
    interrupt.over()
    run = run_train(command)
    assert [path.parent for path in run.parent.glob("*/opt.json")] == [run]
    assert_same_run(run, finished)
    before = {path: path.stat().st_mtime_ns for path in run.iterdir()}
    caplog.clear()
    assert run_train(command) == run
    assert caplog.messages == [f"{run}: the run is finished, nothing to do"]
    assert {path: path.stat().st_mtime_ns for path in run.iterdir()} == before


def test_auto_resumes_the_run_of_the_same_options_only(shared: SmallDataset, interrupt: Interruption) -> None:
    flags = shared.flags("--exp_id", "several", "--n_epoch", "1", "--resume", "auto")
    for more in ([], ["--lr", "0.02"], ["--description", "named"]):
        interrupt.at(1, send(signal.SIGINT))
        with pytest.raises(Stopped):
            run_train([*flags, *more])
    interrupt.over()
    parent = shared.results.parent / "several"
    by_lr = {read_json(path)["lr"]: path.parent for path in parent.glob("2*/opt.json")}
    (parent / "broken").mkdir()
    (parent / "broken" / "opt.json").write_text("{")
    assert run_train([*flags, "--lr", "0.02"]) == by_lr[0.02]
    assert run_train([*flags, "--lr", "0.03"]) not in by_lr.values()
    with RunFolder(by_lr[0.01]), pytest.raises(InputError, match="another process is writing to this run"):
        run_train(flags)
    with pytest.raises(InputError, match=r"a resumed run must keep its options: --lr was 0\.01, is 0\.02$"):
        run_train([*flags, "--description", "named", "--lr", "0.02"])
    assert run_train(flags) == by_lr[0.01]


def test_auto_starts_in_a_folder_with_nothing_written_yet(shared: SmallDataset) -> None:
    """Killed between the folder and its opt.json."""
    RunFolder(shared.results / "left at once").close()
    (shared.results / "left at once" / "notes.txt").write_text("kept")
    run = run_train(shared.flags("--n_epoch", "1", "--description", "left at once", "--resume", "auto"))
    assert (run / "metrics.json").exists()
    assert (run / "notes.txt").read_text() == "kept"


def test_auto_with_more_or_fewer_epochs(finished: Path, shared: SmallDataset) -> None:
    run = copy_of(finished, "auto epochs")
    flags = shared.flags("--description", run.name, "--save_scores", "--resume", "auto", "--n_epoch")
    with pytest.raises(InputError, match=f"--n_epoch was {EPOCHS}, is {EPOCHS - 1}$"):
        run_train([*flags, str(EPOCHS - 1)])
    assert run_train([*flags, str(EPOCHS + 1)]) == run
    assert len(history(run)) == EPOCHS + 1
    assert (run / f"n_epoch_{EPOCHS}" / "metrics.json").exists()


def test_a_run_from_before_text_options_were_recorded_keeps_its_encoding() -> None:
    now = plain(read_options(["--dataset_name", "tvr", "--neg_query_loss", "both"]))
    before = {name: value for name, value in now.items() if not name.startswith("text_")}
    with pytest.raises(InputError, match=r"--text_layer was -1, is -2; --text_special_tokens was keep, is drop$"):
        check_same_options(before, now)
    check_same_options({**before, "neg_query_loss": None}, {**now, "neg_query_loss": None})


def test_a_run_from_before_further_losses_were_recorded_has_none() -> None:
    now = plain(read_options(["--dataset_name", "charades", "--fused_loss", "instead", "--false_negatives", "equal"]))
    before = {name: value for name, value in now.items() if name not in ("fused_loss", "false_negatives")}
    with pytest.raises(InputError, match=r"--fused_loss was off, is instead; --false_negatives was off, is equal$"):
        check_same_options(before, now)
    check_same_options(before, {**now, "fused_loss": "off", "false_negatives": "off"})


@pytest.mark.parametrize("change", ["losses triplet", "head clips", "attention gaussian", "registers 2",
    "fusion_gradient true", "frame_drop 0.1", "token_drop 0.1", "feature_noise 0.1", "input_init whitened",
    "fusion_init aligned", "neg_query_start_epoch 1"])  # fmt: skip
def test_a_run_from_before_an_option_was_recorded_does_not_get_it(change: str) -> None:
    flag, value = change.split()
    now = plain(read_options(["--dataset_name", "charades", f"--{flag}", value]))
    before = {name: own for name, own in now.items() if name != flag}
    with pytest.raises(InputError, match=rf"keep its options: --{flag} was [^;]*, is [^;]*$"):
        check_same_options(before, now)
    check_same_options(before, plain(read_options(["--dataset_name", "charades"])))


def copy_of(run: Path, name: str) -> Path:
    return Path(shutil.copytree(run, run.parent / name))


@pytest.mark.parametrize(("change", "message"), [
    (["--lr", "0.02"], "--lr was 0.01, is 0.02$"),
    (["--bsz", "4", "--seed", "1"], "--seed was 7, is 1; --bsz was 5, is 4$"),
    (["--no_flow_feat", "--visual_flow_feat_dim", "10"], "--visual_flow_feat_dim was 6, is 10; --flow_feat was True"),
    (["--hidden_size", "32"], "--hidden_size was 16, is 32"),
    (["--margin", "0.1"], "--margin was 0.2, is 0.1"),
    (["--n_epoch", "2"], "--n_epoch was 3, is 2$"),
    (["--max_es_cnt", "3"], "--max_es_cnt was 10, is 3"),
    (["--eval_context_bsz", "2"], "--eval_context_bsz was 3, is 2"),
    (["--amp", "bf16"], "--amp was off, is bf16"),
    (["--fused_loss", "beside"], "--fused_loss was off, is beside"),
], ids=lambda value: " ".join(value) if isinstance(value, list) else "")  # fmt: skip
def test_changed_options_are_refused_by_name(finished: Path, change: list[str], message: str) -> None:
    run = copy_of(finished, "changed" + "".join(change).replace("-", "").replace(".", ""))
    (run / "metrics.json").unlink()
    before = (run / "opt.json").read_bytes()
    with pytest.raises(InputError, match=message):
        run_train(["--resume", str(run), "--device", "-1", *change])
    assert (run / "opt.json").read_bytes() == before
    RunFolder(run).close()  # the refused attempt keeps no lock


def test_labels_of_several_right_videos_may_change() -> None:
    check_same_options(
        {"lr": 0.01, "multi_gt": None, "multi_gt_subset": False},
        {"lr": 0.01, "multi_gt": "labels.jsonl", "multi_gt_subset": True},
    )


def test_more_epochs_continue_a_finished_run(finished: Path, interrupt: Interruption) -> None:
    """Its results are archived before anything changes, so that they are not mistaken for the longer run's."""
    run = copy_of(finished, "longer")
    results = {name: (run / name).read_bytes() for name in ("metrics.json", "scores.npz", "model.ckpt")}
    interrupt.at(0, crash)
    with pytest.raises(Crash):
        run_train(["--resume", str(run), "--device", "-1", "--n_epoch", str(EPOCHS + 2)])
    assert {name: (run / f"n_epoch_{EPOCHS}" / name).read_bytes() for name in results} == results
    assert not (run / "metrics.json").exists()
    assert not (run / "scores.npz").exists()
    interrupt.over()
    run_train(["--resume", str(run), "--device", "-1"])
    rows = history(run)
    assert rows[:EPOCHS] == history(finished)
    assert [row["epoch"] for row in rows] == list(range(EPOCHS + 2))
    assert read_json(run / "metrics.json")["options"]["n_epoch"] == EPOCHS + 2
    assert read_json(run / "metrics.json")["checkpoint"]["sha256"] == sha256(run / "model.ckpt")
    assert {name: (run / f"n_epoch_{EPOCHS}" / name).read_bytes() for name in results} == results


def test_a_finished_run_without_its_state_is_not_restarted(finished: Path) -> None:
    run = copy_of(finished, "without state")
    (run / "last.ckpt").unlink()
    before = {path: path.read_bytes() for path in run.iterdir() if path.is_file()}
    with pytest.raises(InputError, match=r"last\.ckpt: missing; a finished run cannot be extended without it"):
        run_train(["--resume", str(run), "--device", "-1", "--n_epoch", str(EPOCHS + 2)])
    assert {path: path.read_bytes() for path in before} == before


def test_a_finished_run_is_never_overwritten(shared: SmallDataset, finished: Path) -> None:
    before = {path: path.read_bytes() for path in finished.iterdir() if path.is_file() and path.name != "train.log"}
    for arguments, message in (
        (shared.flags("--description", "finished"), "holds a finished run; choose another name"),
        (["--resume", str(finished), "--device", "-1"], "the run is finished; raise --n_epoch above 3 to continue it"),
    ):
        with pytest.raises(InputError, match=message):
            run_train(arguments)
    assert {path: path.read_bytes() for path in before} == before


def test_a_run_on_a_poor_disk(small: SmallDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_all(monkeypatch)
    run = run_train(small.flags("--n_epoch", "1", "--description", "run", "--save_scores", "--report"))
    assert (run / "report" / "index.html").exists()
    run_train(["--resume", str(run), "--device", "-1", "--n_epoch", "2"])
    assert {path.name for path in (run / "n_epoch_1").iterdir()} >= {"metrics.json", "scores.npz", "report"}


@pytest.mark.parametrize(("name", "value", "message"), [
    ("bsz", None, "bsz: expected one value, found None"),
    ("bsz", [5] * 9, "bsz: expected one value, found a list"),
    ("bsz", "five", "bsz: expected a value of type int, found 'five'"),
    ("bsz", 10**400, "--bsz a number of more than 60 digits: expected a number below"),
    ("lr", {}, "lr: expected one value, found a dict"),
    ("flow_feat", "maybe", "flow_feat: expected true or false, found 'maybe'"),
], ids=str)  # fmt: skip
def test_invalid_saved_options_are_refused(
    finished: Path, tmp_path: Path, name: str, value: object, message: str
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    write_json(run / "opt.json", {**read_json(run / "opt.json"), name: value})
    where = "" if message.startswith("--") else f"{re.escape(str(run))}: "
    with pytest.raises(InputError, match=f"^{where}{message}"):
        run_train(["--resume", str(run), "--device", "-1", "--n_epoch", str(EPOCHS + 1)])


def test_a_folder_without_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in (str(tmp_path), "./auto"):  # a folder of that name
        with pytest.raises(InputError, match=r"--resume .*: no run there, expected a folder with opt\.json"):
            run_train(["--resume", folder])
