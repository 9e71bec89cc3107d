"""Every kind of wrong or unusual input through the whole program: a message that names file and id, or a result."""

from __future__ import annotations

import gzip
import logging
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from method.config import options as config
from method.runtime.errors import InputError
from method.training.checkpoint import model_content
from method.training.checkpoint_file import write_checkpoint
from tests.helpers.paths import REPOSITORY
from tests.helpers.small_dataset import SmallDataset, history, metrics, run_evaluate, run_train
from tests.helpers.small_models import lively_model

Change = Callable[[SmallDataset], Any]


def train(small: SmallDataset, *flags: str) -> Path:
    return run_train(small.flags("--n_epoch", "1", "--description", "run", *flags))


def edit_lines(path: Path, change: Callable[[list[str]], list[str]]) -> None:
    path.write_text("\n".join(change(path.read_text(encoding="utf-8").splitlines())) + "\n", encoding="utf-8")


def set_rows(path: Path, name: str, change: Callable[[Any], Any]) -> None:
    """Replace an array of an HDF5 file."""
    with h5py.File(path, "r+") as file:
        rows = file[name][()]
        del file[name]
        file[name] = change(rows)


def delete(path: Path, *names: str) -> None:
    with h5py.File(path, "r+") as file:
        for name in names:
            del file[name]


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def make_group(path: Path, name: str) -> None:
    with h5py.File(path, "r+") as file:
        del file[name]
        file.create_group(name)


def with_value(row: int, value: float) -> Callable[[Any], Any]:
    def change(rows: Any) -> Any:
        rows[row, 1] = value
        return rows

    return change


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


# Found before anything is written, each with a message that names the file and the id

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
CALLED_A_POINTER = "a Git LFS pointer, not the file itself; `git lfs pull`"
BEFORE_THE_FIRST_STEP: dict[str, tuple[Change, str]] = {
    "no video features": (lambda d: d.features.unlink(),
        r"files of dataset demo are not all there: --video_feat_path: no .*numpy\.hdf5; write the demo with: python"),
    "no files at all": (lambda d: shutil.rmtree(d.features.parent.parent),
        "--video_feat_path: no .*--text_feat_path: no .*--caption_train_txt: no .*--caption_test_txt: no "),
    "a folder for a file": (lambda d: make_folder(d.texts),
        r"query_feat\.hdf5: expected a file, found a folder"),
    "id without #": (lambda d: edit_lines(d.train_txt, lambda lines: [*lines[:4], "T01 a person runs", *lines[4:]]),
        r"demotrain\.caption\.txt: line 5: expected 'VIDEOID#enc#K the caption', found 'T01 a person runs'$"),
    "duplicate caption id": (lambda d: edit_lines(d.train_txt, lambda lines: [*lines, lines[2]]),
        r"demotrain\.caption\.txt: line 31: caption id 'T01#enc#0' occurs a second time$"),
    "video without one stream": (lambda d: delete(d.features, "E02/clip_feat"),
        r"numpy\.hdf5: 'E02/clip_feat' is missing$"),
    "caption without features": (lambda d: delete(d.texts, "E01#enc#1"), r"query_feat\.hdf5: 'E01#enc#1' is missing$"),
    "wrong width of tokens": (lambda d: set_rows(d.texts, "T00#enc#1", lambda rows: rows[:, :3]),
        r"'T00#enc#1' has shape \(\d, 3\), expected \(rows, 8\)$"),
    "a group for tokens": (lambda d: make_group(d.texts, "T00#enc#0"),
        "'T00#enc#0' is a group, expected an array$"),
    "truncated HDF5": (lambda d: truncate(d.features), r"numpy\.hdf5: not a readable HDF5 file .*truncated"),
    "a Git LFS pointer for features": (lambda d: d.features.write_bytes(POINTER), f"hdf5: {CALLED_A_POINTER}"),
    "a web page for captions": (lambda d: d.test_txt.write_text("\n<!doctype html><html>"),
        r"val\.caption\.txt: a web page"),
    "compressed features": (lambda d: d.features.write_bytes(gzip.compress(d.features.read_bytes())),
        r"hdf5: compressed \(gzip\); unpack it first"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), BEFORE_THE_FIRST_STEP.values(), ids=BEFORE_THE_FIRST_STEP)
def test_refused_before_the_first_step(small: SmallDataset, change: Change, message: str) -> None:
    change(small)
    with pytest.raises(InputError, match=message) as caught:
        train(small)
    assert "\n" not in str(caught.value)
    assert str(small.root) in str(caught.value)
    assert not small.results.exists()


# Non-finite values are only found when they are read


@pytest.mark.parametrize(("file", "name", "value"), [
    ("features", "T07/i3d_feat", np.nan), ("features", "E03/clip_feat", np.inf), ("texts", "T02#enc#1", -np.inf),
])  # fmt: skip
def test_non_finite_values(small: SmallDataset, one_epoch: Path, file: str, name: str, value: float) -> None:
    """Found while training or evaluating; with the file repaired the run resumes to the usual result."""
    path: Path = getattr(small, file)
    before = path.read_bytes()
    set_rows(path, name, with_value(1, value))
    with pytest.raises(InputError, match=rf"{path.name}: '{name}' row 1 holds NaN, infinity or numbers too large"):
        train(small)
    assert not (small.results / "run" / "metrics.json").exists()
    path.write_bytes(before)
    run = run_train(["--resume", str(small.results / "run"), "--device", "-1"])
    assert history(run) == history(one_epoch)
    assert metrics(run) == metrics(one_epoch)


# Accepted: the result is that of the ordinary files


def rename(small: SmallDataset, change: Callable[[str], str]) -> None:
    """Give every video another id, in all files."""
    for path in (small.train_txt, small.test_txt):
        edit_lines(path, lambda lines: [re.sub(r"^[^#]+", lambda match: change(match[0]), line) for line in lines])
    with h5py.File(small.features, "r+") as videos:
        for name in list(videos):
            videos.move(name, change(name))
    with h5py.File(small.texts, "r+") as texts:
        for name in list(texts):
            video, rest = name.split("#", 1)
            texts.move(name, f"{change(video)}#{rest}")


def for_all_arrays(path: Path, change: Callable[[Any], Any]) -> None:
    names: list[str] = []
    with h5py.File(path, "r") as file:
        file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
    for name in names:
        set_rows(path, name, change)


def add_unused(small: SmallDataset) -> None:
    with h5py.File(small.features, "r+") as videos:
        videos["unused/i3d_feat"] = np.full((2, 3), np.nan)


SAME_RESULT: dict[str, Change] = {
    "non-ASCII text": lambda d: d.train_txt.write_text(d.train_txt.read_text().replace("person", "Å風"), "utf-8"),
    "ids with spaces, slashes and other letters": lambda d: rename(d, lambda name: f"mỹ vidéo_風/{name} (1).mp4"),
    "double precision": lambda d: for_all_arrays(d.features, lambda rows: rows.astype(np.float64)),
    "extra leading 1": lambda d: for_all_arrays(d.texts, lambda rows: rows[None]),
    "features of more videos": add_unused,
}


@pytest.mark.parametrize("change", SAME_RESULT.values(), ids=SAME_RESULT)
def test_unusual_files_give_the_usual_result(small: SmallDataset, one_epoch: Path, change: Change) -> None:
    change(small)
    run = train(small)
    assert history(run) == history(one_epoch)
    assert metrics(run) == metrics(one_epoch)


def test_features_of_other_types_are_converted(small: SmallDataset) -> None:
    for path in (small.features, small.texts):
        for_all_arrays(path, lambda rows: (rows * 10).astype(np.int8))
    converted = train(small)
    for path in (small.features, small.texts):
        for_all_arrays(path, lambda rows: rows.astype(np.float32))
    assert history(run_train(small.flags("--n_epoch", "1", "--description", "float32"))) == history(converted)


def test_a_video_in_both_splits_is_a_warning(small: SmallDataset, caplog: pytest.LogCaptureFixture) -> None:
    shared = [line for line in small.train_txt.read_text().splitlines() if line.startswith(("T03", "T05"))]
    edit_lines(small.test_txt, lambda lines: [*lines, *shared])
    run = train(small)
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert warnings == ["2 videos are in both training split and evaluated split: 'T03'; 'T05'"]
    assert (run / "metrics.json").exists()


# Options, checkpoints, and files that change between two runs


def test_a_wrong_yaml_file(small: SmallDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "CONFIGS", tmp_path)
    for content, message in (
        ("bsz: [", r"demo\.yaml: not valid YAML"),
        ("bsize: 3\n", r"demo\.yaml: bsize: no such flag"),
        ("margin: 0.3\n", r"--video_feat_path, --text_feat_path, .*: dataset demo names no such file"),
    ):
        (tmp_path / "demo.yaml").write_text(content)
        with pytest.raises(InputError, match=message):
            train(small)
    assert not small.results.exists()


def test_features_of_another_width_between_two_runs(small: SmallDataset) -> None:
    run = train(small)
    for_all_arrays(small.texts, lambda rows: rows[:, :7])
    with pytest.raises(InputError, match=r"'T00#enc#0' has shape \(3, 7\), expected \(rows, 8\); .*; and 25 more$"):
        run_train(["--resume", str(run), "--device", "-1", "--n_epoch", "2"])
    with pytest.raises(InputError, match=r"'E00#enc#0' has shape \(3, 7\), expected \(rows, 8\); .*; and 15 more$"):
        run_evaluate(["--eval_ckpt", str(run / "model.ckpt"), "--device", "-1"])
    with pytest.raises(InputError, match="--q_feat_size was 8, is 7"):
        run_train(["--resume", str(run), "--device", "-1", "--n_epoch", "2", "--q_feat_size", "7"])


def test_a_checkpoint_of_other_dimensions(small: SmallDataset) -> None:
    """Ours knows its own widths, and the features have others."""
    write_checkpoint(small.root / "m.ckpt", model_content(lively_model(action_width=11), 0, {}))
    with pytest.raises(InputError, match=r"'E00/i3d_feat' has shape \(10, 10\), expected \(rows, 11\)"):
        run_evaluate(small.flags("--eval_ckpt", "m.ckpt"))


@pytest.mark.parametrize("name", ["model.ckpt", "last.ckpt", "opt.json"])
def test_files_of_a_run_that_are_damaged(small: SmallDataset, name: str) -> None:
    run = train(small)
    path = run / name
    truncate(path)
    damaged = path.read_bytes()
    flags = ["--resume", str(run), "--n_epoch", "2"]
    if name == "model.ckpt":
        flags = ["--only_eval", "--eval_ckpt", str(path)]
    with pytest.raises(InputError, match=re.escape(name)):
        run_train([*flags, "--device", "-1"])
    assert path.read_bytes() == damaged


def test_a_machine_without_that_gpu(small: SmallDataset) -> None:
    with pytest.raises(InputError, match=r"--device 99: this machine has \d+ usable GPUs; -1 is the CPU"):
        train(small, "--device", "99")


# The same through the shell


def test_nan_in_a_worker_in_the_shell(small: SmallDataset, tmp_path: Path) -> None:
    set_rows(small.features, "T04/i3d_feat", with_value(0, np.nan))
    command = [sys.executable, str(REPOSITORY / "method/train.py"), *small.flags("--num_workers", "2")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert "Traceback" not in done.stderr
    *log, line = done.stderr.splitlines()
    assert line.startswith(f"error: {small.features}: 'T04/i3d_feat' row 0 holds NaN")
    assert not any(earlier.startswith("error: ") for earlier in log)
