"""Several seeds: runs of their own, killed and continued, and signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from method.runtime.errors import InputError, PeerFailed, Stopped
from tests.helpers.paths import REPOSITORY
from tests.helpers.runs import STEPS, Interruption, assert_same_run, crash, send
from tests.helpers.small_dataset import SmallDataset, run_train
from tests.helpers.trainings import InThisProcess
from utils.runs import trainings
from utils.train_seeds import main


def flags_of(small: SmallDataset, *more: str) -> list[str]:
    """The flags of a short training without a seed."""
    flags = small.flags("--n_epoch", "1", *more)
    place = flags.index("--seed")
    return [*flags[:place], *flags[place + 2 :]]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The seeds of the trainings that are started, which run in this process."""
    InThisProcess.seeds = []
    monkeypatch.setattr(trainings, "Popen", InThisProcess)
    return InThisProcess.seeds


def runs_in(folder: Path) -> dict[str, Path]:
    return {path.parent.name: path.parent for path in folder.glob("*/metrics.json")}


@pytest.mark.parametrize("name", [None, "night"])
def test_killed_and_continued(
    small: SmallDataset,
    trained: list[str],
    interrupt: Interruption,
    name: str | None,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    flags = flags_of(small, "--resume", "auto", "--save_every_steps", "1", *(["--description", name] if name else []))
    interrupt.at(STEPS + 1, crash)  # within the second training
    with pytest.raises(PeerFailed, match="error: 1 of 3 seeds failed: 2") as failed:
        main(["--seeds", "1 2 3", "--", *flags])
    assert failed.value.status == 128 + signal.SIGKILL
    assert trained == ["1", "2", "3"]
    assert "seed 2 failed with status 137" in caplog.messages
    assert capsys.readouterr().out.splitlines()[1].split()[:2] == ["demo", "2"]  # two finished runs
    interrupt.over()
    before = {path: path.stat().st_mtime_ns for path in small.results.glob("*/metrics.json")}
    assert len(before) == 2
    trained.clear()
    main(["--seeds", "1,2,3", "--", *flags])
    assert capsys.readouterr().out.splitlines()[1].split()[:2] == ["demo", "3"]
    runs = runs_in(small.results)
    assert len(runs) == 3
    assert {path: path.stat().st_mtime_ns for path in before} == before
    if name:
        assert sorted(runs) == ["night_seed1", "night_seed2", "night_seed3"]
        alone = run_train(small.flags("--n_epoch", "1", "--seed", "2", "--description", "alone"))
        assert_same_run(runs["night_seed2"], alone)


def test_a_stop_starts_no_further_seed(small: SmallDataset, trained: list[str], interrupt: Interruption) -> None:
    interrupt.at(1, send(signal.SIGINT))
    with pytest.raises(Stopped, match="stopped at seed 1; the same command with --resume auto continues") as stopped:
        main(["--seeds", "1 2", "--", *flags_of(small)])
    assert stopped.value.signal == signal.SIGINT
    assert trained == ["1"]


def test_all_seeds_that_fail_are_tried_and_named(
    small: SmallDataset, trained: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    small.features.unlink()
    with pytest.raises(PeerFailed, match="error: 2 of 2 seeds failed: 4, 5") as failed:
        main(["--seeds", "4 5", "--", *flags_of(small)])
    assert failed.value.status == 2
    assert capsys.readouterr().out == ""


def test_a_name_taken_by_another_configuration_is_no_result(
    small: SmallDataset, trained: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run_train(small.flags("--n_epoch", "1", "--seed", "1", "--description", "x_seed1"))
    with pytest.raises(PeerFailed, match="1 of 1 seeds failed: 1"):
        main(["--seeds", "1", "--", *flags_of(small, "--description", "x", "--lr", "0.5")])
    assert capsys.readouterr().out == ""


STUB = """
import os, signal, sys, time
notes = open(os.environ["NOTES"], "a", buffering=1)
notes.write(sys.argv[sys.argv.index("--seed") + 1] + os.environ["A3PRVR_FORWARDED_SIGNALS"] + "\\n")
def stop(number, frame):
    notes.write(signal.Signals(number).name + "\\n")
    sys.exit(128 + number)
"""


@pytest.mark.parametrize(("body", "received", "noted"), [
    # Only the parent is told, which passes it on.
    ("signal.signal(signal.SIGTERM, stop); os.kill(os.getppid(), signal.SIGTERM); time.sleep(60)",
     signal.SIGTERM, ["11", "SIGTERM"]),
    # The training has been told already, and ends within the time that it is given.
    ("os.kill(os.getppid(), signal.SIGINT); stop(signal.SIGINT, None)", signal.SIGINT, ["11", "SIGINT"]),
    # Only the training is told.
    ("stop(signal.SIGTERM, None)", signal.SIGTERM, ["11", "SIGTERM"]),
    # It does not stop, and the user loses patience.
    ("signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
     "os.kill(os.getppid(), signal.SIGINT); time.sleep(0.2); os.kill(os.getppid(), signal.SIGINT); time.sleep(60)",
     signal.SIGINT, ["11"]),
], ids=["to the parent", "to both", "to the training", "twice"])  # fmt: skip
def test_signals(
    body: str, received: int, noted: list[str], small: SmallDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "train.py").write_text(STUB + body)
    monkeypatch.setattr(trainings, "TRAIN", tmp_path / "train.py")
    monkeypatch.setattr(trainings, "_GRACE", 0.3)
    monkeypatch.setattr(trainings, "_POLL", 0.1)
    monkeypatch.setenv("NOTES", str(tmp_path / "notes"))
    before, started = signal.getsignal(signal.SIGTERM), time.monotonic()
    with pytest.raises(Stopped) as stopped:
        main(["--seeds", "1 2", "--", *flags_of(small)])
    assert stopped.value.signal == received
    assert (tmp_path / "notes").read_text().split() == noted
    assert time.monotonic() - started < 30
    assert signal.getsignal(signal.SIGTERM) is before


def test_several_at_a_time(small: SmallDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each but the first waits for the next to have started; all but the one that failed are told to stop."""
    body = """
signal.signal(signal.SIGTERM, stop)
seed = int(sys.argv[-1])
while seed < 3 and f"{seed + 1}1" not in open(os.environ["NOTES"]).read().split():
    time.sleep(0.01)
if seed == 1:
    sys.exit(7)
if seed == 3:
    os.kill(os.getppid(), signal.SIGTERM)
time.sleep(60)
"""
    (tmp_path / "train.py").write_text(STUB + body)
    monkeypatch.setattr(trainings, "TRAIN", tmp_path / "train.py")
    monkeypatch.setattr(trainings, "_GRACE", 0.0)
    monkeypatch.setattr(trainings, "_POLL", 0.05)
    notes = tmp_path / "notes"
    notes.touch()
    found = {}
    running = trainings.Trainings(environment={"NOTES": str(notes)})
    with running:
        for seed, status in running.run([(seed, ["--seed", str(seed)]) for seed in range(1, 6)], jobs=2):
            found[seed] = status
    assert running.received == signal.SIGTERM
    assert found == {1: 7, 2: 143, 3: 143}
    assert sorted(notes.read_text().split()) == ["11", "21", "31", "SIGTERM", "SIGTERM"]


KILLED = """
import sys
from pathlib import Path
from utils.runs import trainings
trainings.TRAIN = Path(sys.argv[1])
list(trainings.Trainings().run([(1, ["--seed", "1"])]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells a process that its parent has ended")
def test_no_training_is_left_behind_when_its_starter_is_killed(tmp_path: Path) -> None:
    body = "signal.signal(signal.SIGTERM, stop); os.kill(os.getppid(), signal.SIGKILL); time.sleep(60)"
    (tmp_path / "train.py").write_text(STUB + body)
    notes, started = tmp_path / "notes", time.monotonic()
    command = [sys.executable, "-c", KILLED, str(tmp_path / "train.py")]
    environment = {**os.environ, "NOTES": str(notes), "PYTHONPATH": str(REPOSITORY)}
    # Until the training, too, has closed its standard output.
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=False)
    assert done.returncode == -signal.SIGKILL
    assert notes.read_text().split() == ["11", "SIGTERM"]
    assert time.monotonic() - started < 30


def test_a_training_whose_starter_has_ended_does_not_start(tmp_path: Path) -> None:
    command = [sys.executable, str(REPOSITORY / "utils/runs/with_parent.py"), "1", sys.executable, "-c", "print(1)"]
    done = subprocess.run(command, capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")


def test_several_processes_of_each_training(small: SmallDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def note(command: list[str], **settings: Any) -> Any:
        commands.append(command)
        raise OSError(2, "not started")

    monkeypatch.setattr(trainings, "Popen", note)
    with pytest.raises(OSError, match="not started"):
        main(["--seeds=8", "--nproc_per_node", "2", "--", *flags_of(small)])
    place = commands[0].index(str(trainings.TRAIN))
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    assert commands[0][place - len(start) : place] == start
    assert commands[0][-2:] == ["--seed", "8"]


@pytest.mark.parametrize(("words", "message"), [
    (["--seeds", "1 x", "--"], "expected different whole numbers, as in '1 2 3', found '1 x'"),
    (["--seeds", "1 2 01", "--"], "expected different whole numbers"),
    (["--seeds", " ", "--"], "expected different whole numbers"),
    (["--seeds=-1", "--"], "expected different whole numbers"),
    (["--seeds", "1 2", "--", "--seed", "3"], "--seed: SEEDS"),
    (["--seeds", "1 2", "--", "--seed=3"], "--seed: SEEDS"),
    (["--seeds", "1 2", "--", "--only_eval"], "--only_eval: several seeds are for trainings"),
    (["--seeds", "1 2", "--", "--resume"], "each seed has a run of its own, expected --resume auto"),
    (["--seeds", "1 2", "--", "--no_such_flag"], "unrecognized arguments: --no_such_flag"),
    (["--seeds", "1 2", "--n_epoch", "3"], "unrecognized arguments: --n_epoch"),
    (["--"], "--seeds"),
])  # fmt: skip
def test_flags_that_are_refused_before_anything_starts(
    words: list[str], message: str, small: SmallDataset, trained: list[str]
) -> None:
    flags = flags_of(small) if "--" in words else []
    place = words.index("--") + 1 if "--" in words else len(words)
    with pytest.raises(InputError) as raised:
        main([*words[:place], *flags, *words[place:]])
    assert message in str(raised.value)
    assert trained == []
    assert not small.results.exists()
