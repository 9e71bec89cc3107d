"""What TensorBoard shows of a run, also after a kill or on a full disk."""

from __future__ import annotations

import errno
import json
import resource
import threading
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from method.training.tensorboard import Monitor

OPTIONS = {"lr": 0.1, "bsz": 5, "description": None, "root_path": "a\udcff"}


def shown(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return events


def test_a_resumed_run_has_each_point_once(tmp_path: Path) -> None:
    killed = Monitor(tmp_path, 0, OPTIONS)
    for step in range(1, 6):
        killed.scalars("loss", {"all": float(step)}, step)
    killed.metrics({"fused": {"sumr": 7.0}}, 3)  # which flushes; the run was saved after step 3
    killed.metrics({}, 5)
    resumed = Monitor(tmp_path, 3, OPTIONS)
    for step in range(4, 7):
        resumed.scalars("loss", {"all": 10.0 + step}, step)
    resumed.close()
    events = shown(tmp_path)
    assert [(point.step, point.value) for point in events.Scalars("loss/all")] == [
        *((1, 1.0), (2, 2.0), (3, 3.0)),
        *((4, 14.0), (5, 15.0), (6, 16.0)),
    ]
    assert [(point.step, point.value) for point in events.Scalars("fused/sumr")] == [(3, 7.0)]


def test_options_results_and_figures_belong_to_the_run(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path, 0, OPTIONS)
    figure = Figure()
    figure.add_subplot().plot([1, 2])
    monitor.figures({"curve": figure}, 4)
    monitor.result({"fused": {"sumr": 8.0}})
    monitor.close()
    events = shown(tmp_path)
    (text,) = events.Tensors("options/text_summary")
    assert json.loads(text.tensor_proto.string_val[0].decode().strip("`").removeprefix("json\n")) == OPTIONS
    assert [image.step for image in events.Images("curve")] == [4]
    assert [point.value for point in events.Scalars("final/sumr")] == [8.0]
    given = events.PluginTagToContent("hparams")["_hparams_/session_start_info"]
    assert all(name.encode() in given for name in ("lr", "bsz", "root_path"))
    assert b"description" not in given
    assert not [path for path in (tmp_path / "tensorboard").iterdir() if path.is_dir()]


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    monitor = Monitor(None, 0, OPTIONS)
    monitor.scalars("loss", {"all": 1.0}, 1)
    monitor.result({"fused": {"sumr": 8.0}})
    monitor.close()
    assert not list(tmp_path.iterdir())


def test_a_full_disk_costs_the_curves_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    monitor = Monitor(tmp_path, 0, OPTIONS)
    monitor.metrics({"fused": {"sumr": 7.0}}, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        for step in range(2, 100):
            monitor.metrics({"fused": {"sumr": 7.0}}, step)
        monitor.result({"fused": {"sumr": 8.0}})
        monitor.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caplog.messages == ["tensorboard/ cannot be written (File too large): no curves from here on"]
    assert "Traceback" not in capfd.readouterr().err
    assert shown(tmp_path).Scalars("fused/sumr")[0].value == 7.0


def test_a_folder_that_cannot_be_written_costs_the_curves_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "tensorboard").write_text("in the way")
    monitor = Monitor(tmp_path, 0, OPTIONS)
    monitor.scalars("loss", {"all": 1.0}, 1)
    monitor.close()
    (message,) = caplog.messages
    assert message.startswith("tensorboard/ cannot be written (")
    assert message.endswith("): no curves from here on")


def test_failures_of_other_threads_are_still_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", reported.append)
    monitor = Monitor(tmp_path, 0, OPTIONS)

    def fail() -> None:
        raise OSError(errno.EIO, "another thread")

    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    monitor.close()
    assert [str(error.exc_value) for error in reported] == [f"[Errno {errno.EIO}] another thread"]
