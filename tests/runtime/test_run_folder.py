"""The folder of a run: name, lock, log and recorded environment."""

import logging
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from method.runtime import run_folder
from method.runtime.errors import InputError
from method.runtime.files import write_json
from method.runtime.run_folder import METRICS, OPTIONS, RunFolder, RunName, environment_info, new_run
from tests.helpers.small_dataset import own_log_handlers


def run_name(root: Path, **changes: Any) -> RunName:
    return RunName(**{"results": root, "dataset": "demo", "experiment": "runs", "description": None, **changes})


def test_the_path_of_a_run_follows_from_its_names(tmp_path: Path) -> None:
    with new_run(run_name(tmp_path, description="first")) as folder:
        assert folder.path == tmp_path / "demo" / "runs" / "first"
        assert folder.path.is_dir()


def test_runs_of_the_same_second_get_folders_of_their_own(tmp_path: Path) -> None:
    paths = []
    for _ in range(4):
        with new_run(run_name(tmp_path)) as folder:
            paths.append(folder.path)
    assert len(set(paths)) == 4
    assert {path.parent for path in paths} == {tmp_path / "demo" / "runs"}


@pytest.mark.parametrize(("left", "message"), [
    (METRICS, "--description first: .* holds a finished run; choose another name"),
    (OPTIONS, "--description first: .* holds an unfinished run; continue it with --resume, or rename it"),
])  # fmt: skip
def test_a_run_is_never_overwritten(tmp_path: Path, left: str, message: str) -> None:
    with new_run(run_name(tmp_path, description="first")) as folder:
        write_json(folder.path / left, {"kept": True})
    with pytest.raises(InputError, match=message):
        new_run(run_name(tmp_path, description="first"))
    assert "kept" in (folder.path / left).read_text()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../a", "/a"])
@pytest.mark.parametrize(
    ("flag", "field"), [("exp_id", "experiment"), ("description", "description"), ("dataset_name", "dataset")]
)
def test_names_cannot_leave_the_results(tmp_path: Path, flag: str, field: str, name: str) -> None:
    with pytest.raises(InputError, match=f"--{flag} {name!r}: expected the name of a folder, not a path"):
        new_run(run_name(tmp_path, **{field: name}))
    assert not list(tmp_path.iterdir())


def test_a_second_writer_is_refused_until_the_first_has_closed(tmp_path: Path) -> None:
    with RunFolder(tmp_path), pytest.raises(InputError, match="another process is writing to this run"):
        RunFolder(tmp_path)
    RunFolder(tmp_path).close()


def test_the_log_of_a_run_is_its_own(tmp_path: Path) -> None:
    with own_log_handlers():
        run_folder.log_to_terminal()
        log = logging.getLogger("a.module")
        for name in ("one", "two"):
            with RunFolder(tmp_path / name):
                log.info("in %s, ünïcode", name)
        log.info("in none")
    for name, other in (("one", "two"), ("two", "one")):
        text = (tmp_path / name / "train.log").read_text(encoding="utf-8")
        assert f"in {name}, ünïcode" in text
        assert f"in {other}" not in text
        assert "in none" not in text
        assert "torch" in text


def test_a_log_is_appended_to(tmp_path: Path) -> None:
    with own_log_handlers():
        run_folder.log_to_terminal()
        for text in ("first", "second"):
            with RunFolder(tmp_path):
                logging.getLogger("a.module").warning(text)
    log = (tmp_path / "train.log").read_text()
    assert log.index("first") < log.index("second")


def test_terminal_log_is_set_up_once(capsys: pytest.CaptureFixture[str]) -> None:
    with own_log_handlers():
        run_folder.log_to_terminal()
        run_folder.log_to_terminal()
        logging.getLogger("a.module").info("hello")
    captured = capsys.readouterr()
    assert (captured.err, captured.out) == ("hello\n", "")


def test_scores_are_written_with_their_names(tmp_path: Path) -> None:
    fused = np.random.default_rng(0).random((3, 2), dtype=np.float32)
    with RunFolder(tmp_path) as folder:
        folder.write_scores(["a#0", "a#1", "é#0"], ["a", "é"], {"action": fused, "fused": fused})
    with np.load(tmp_path / "scores.npz") as scores:
        assert set(scores) == {"query_ids", "video_ids", "action", "fused"}
        assert scores["query_ids"].tolist() == ["a#0", "a#1", "é#0"]
        assert scores["video_ids"].tolist() == ["a", "é"]
        assert scores["fused"].dtype == np.float32
        np.testing.assert_array_equal(scores["fused"], fused)


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_environment_has_the_revision_and_whether_the_tree_is_clean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_folder, "REPOSITORY", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert environment_info()["git"] is None

    def git(*words: str) -> str:
        identity = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"]
        done = subprocess.run(["git", *identity, *words], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    git("init", "-q")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-q", "-m", "first")
    environment = environment_info()
    assert environment["git"] == {"revision": git("rev-parse", "HEAD"), "clean": True}
    assert {"python", "torch", "numpy", "h5py"} <= set(environment)
    (tmp_path / "file").write_text("2")
    assert environment_info()["git"]["clean"] is False
