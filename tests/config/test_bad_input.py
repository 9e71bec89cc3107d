"""Every kind of wrong or unusual input through the whole program: a message that names file and id, or a result."""

from __future__ import annotations

import gzip
import logging
import os
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
import torch

from method.config import options as config
from method.runtime.errors import InputError
from method.training.checkpoint import model_content
from method.training.checkpoint_file import write_checkpoint
from tests.helpers.paths import REPOSITORY
from tests.helpers.small_dataset import SmallDataset, history, metrics, run_evaluate, run_train
from tests.helpers.small_models import lively_model

Spoil = Callable[[SmallDataset], Any]


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
BEFORE_THE_FIRST_STEP: dict[str, tuple[Spoil, str]] = {
    "no video features": (lambda d: d.features.unlink(),
        r"files of dataset demo are not all there: --video_feat_path: no .*numpy\.hdf5; write the demo with: python"),
    "no files at all": (lambda d: shutil.rmtree(d.features.parent.parent),
        "--video_feat_path: no .*--text_feat_path: no .*--caption_train_txt: no .*--caption_test_txt: no "),
    "a folder for a file": (lambda d: make_folder(d.texts),
        r"query_feat\.hdf5: expected a file, found a folder"),
    "id without #": (lambda d: edit_lines(d.train_txt, lambda lines: [*lines[:4], "T01 a person runs", *lines[4:]]),
        r"demotrain\.caption\.txt: line 5: expected 'VIDEOID#enc#K the caption', found 'T01 a person runs'$"),
    "no caption": (lambda d: edit_lines(d.test_txt, lambda lines: [*lines, "E00#enc#9"]),
        r"demoval\.caption\.txt: line 21: expected .*, found 'E00#enc#9'$"),
    "duplicate caption id": (lambda d: edit_lines(d.train_txt, lambda lines: [*lines, lines[2]]),
        r"demotrain\.caption\.txt: line 31: caption id 'T01#enc#0' occurs a second time$"),
    "many wrong lines": (lambda d: edit_lines(d.train_txt, lambda lines: [line.replace("#", "%") for line in lines]),
        r"line 5: .*; and 25 more$"),
    "empty caption file": (lambda d: d.test_txt.write_text(""), r"demoval\.caption\.txt: no captions"),
    "blank caption file": (lambda d: d.test_txt.write_text("\n \r\n\n"), r"demoval\.caption\.txt: no captions"),
    "captions not UTF-8": (lambda d: d.test_txt.write_bytes(b"E00#enc#0 caf\xe9\n"), r"line 1: byte 14 .* not UTF-8"),
    "captions are another file": (lambda d: d.test_txt.write_bytes(d.features.read_bytes()), "is not UTF-8 text"),
    "video without features": (lambda d: delete(d.features, "T03"), r"numpy\.hdf5: 'T03/i3d_feat' is missing$"),
    "video without one stream": (lambda d: delete(d.features, "E02/clip_feat"),
        r"numpy\.hdf5: 'E02/clip_feat' is missing$"),
    "many videos without features": (lambda d: delete(d.features, *(f"T{i:02d}" for i in range(9))),
        "'T00/i3d_feat' is missing; .*'T04/i3d_feat' is missing; and 4 more$"),
    "caption without features": (lambda d: delete(d.texts, "E01#enc#1"), r"query_feat\.hdf5: 'E01#enc#1' is missing$"),
    "features of another file": (lambda d: d.features.write_bytes(d.texts.read_bytes()), "is missing; and 7 more"),
    "wrong width of i3d_feat": (lambda d: set_rows(d.features, "T05/i3d_feat", lambda rows: rows[:, :9]),
        r"'T05/i3d_feat' has shape \(\d+, 9\), expected \(rows, 10\)$"),
    "wrong width of clip_feat": (lambda d: set_rows(d.features, "E05/clip_feat", lambda rows: rows.repeat(2, 1)),
        r"'E05/clip_feat' has shape \(\d+, 12\), expected \(rows, 6\)$"),
    "wrong width of tokens": (lambda d: set_rows(d.texts, "T00#enc#1", lambda rows: rows[:, :3]),
        r"'T00#enc#1' has shape \(\d, 3\), expected \(rows, 8\)$"),
    "too many dimensions": (lambda d: set_rows(d.texts, "T00#enc#1", lambda rows: np.stack([rows, rows])),
        r"'T00#enc#1' has shape \(2, \d, 8\), expected \(rows, 8\)$"),
    "a vector of another width": (lambda d: set_rows(d.features, "T00/clip_feat", lambda rows: rows[0, :4]),
        r"'T00/clip_feat' has shape \(4,\), expected \(rows, 6\)$"),
    "zero rows": (lambda d: set_rows(d.features, "T00/clip_feat", lambda rows: rows[:0]),
        "'T00/clip_feat' has no rows, expected at least one$"),
    "text for numbers": (lambda d: set_rows(d.features, "T00/clip_feat", lambda rows: rows.astype("S8")),
        "'T00/clip_feat' holds neither integers nor floats, expected numbers$"),
    "a group for tokens": (lambda d: make_group(d.texts, "T00#enc#0"),
        "'T00#enc#0' is a group, expected an array$"),
    "truncated HDF5": (lambda d: truncate(d.features), r"numpy\.hdf5: not a readable HDF5 file .*truncated"),
    "not HDF5": (lambda d: d.texts.write_text("hello"), r"query_feat\.hdf5: not a readable HDF5 file"),
    "a Git LFS pointer for features": (lambda d: d.features.write_bytes(POINTER), f"hdf5: {CALLED_A_POINTER}"),
    "a Git LFS pointer for captions": (lambda d: d.train_txt.write_bytes(POINTER), f"txt: {CALLED_A_POINTER}"),
    "a web page for captions": (lambda d: d.test_txt.write_text("\n<!doctype html><html>"),
        r"val\.caption\.txt: a web page"),
    "compressed features": (lambda d: d.features.write_bytes(gzip.compress(d.features.read_bytes())),
        r"hdf5: compressed \(gzip\); unpack it first"),
    "empty HDF5": (lambda d: d.texts.write_bytes(b""), r"query_feat\.hdf5: not a readable HDF5 file"),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "message"), BEFORE_THE_FIRST_STEP.values(), ids=BEFORE_THE_FIRST_STEP)
def test_refused_before_the_first_step(small: SmallDataset, spoil: Spoil, message: str) -> None:
    spoil(small)
    with pytest.raises(InputError, match=message) as caught:
        train(small)
    assert "\n" not in str(caught.value)
    assert str(small.root) in str(caught.value)
    assert not small.results.exists()


# Numbers that are none can only be found when they are read


@pytest.mark.parametrize(("file", "name", "value"), [
    ("features", "T07/i3d_feat", np.nan), ("features", "E03/clip_feat", np.inf), ("texts", "T02#enc#1", -np.inf),
    ("texts", "E06#enc#0", np.nan), ("features", "T01/clip_feat", 3e38),
])  # fmt: skip
def test_numbers_that_are_none(small: SmallDataset, one_epoch: Path, file: str, name: str, value: float) -> None:
    """Found while training or evaluating; the repaired run goes on as if nothing had been."""
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


SAME_RESULT: dict[str, Spoil] = {
    "byte-order mark": lambda d: d.train_txt.write_bytes(b"\xef\xbb\xbf" + d.train_txt.read_bytes()),
    "Windows line ends": lambda d: d.train_txt.write_bytes(d.train_txt.read_bytes().replace(b"\n", b"\r\n")),
    "tabs": lambda d: d.test_txt.write_text(d.test_txt.read_text().replace(" ", "\t", 3)),
    "empty lines": lambda d: d.test_txt.write_text("\n" + d.test_txt.read_text().replace("\n", "\n\n \n")),
    "non-ASCII text": lambda d: d.train_txt.write_text(d.train_txt.read_text().replace("person", "Å風"), "utf-8"),
    "non-ASCII ids": lambda d: rename(d, lambda name: f"véidéo_風{name}"),
    "ids with spaces": lambda d: rename(d, lambda name: f"my video {name} (1).mp4"),
    "ids with slashes": lambda d: rename(d, lambda name: f"part/{name}"),
    "double precision": lambda d: for_all_arrays(d.features, lambda rows: rows.astype(np.float64)),
    "extra leading 1": lambda d: for_all_arrays(d.texts, lambda rows: rows[None]),
    "features of more videos": add_unused,
}


@pytest.mark.parametrize("change", SAME_RESULT.values(), ids=SAME_RESULT)
def test_unusual_files_give_the_usual_result(small: SmallDataset, one_epoch: Path, change: Spoil) -> None:
    change(small)
    run = train(small)
    assert history(run) == history(one_epoch)
    assert metrics(run) == metrics(one_epoch)


@pytest.mark.parametrize("kind", [np.float16, np.int32, np.int8])
def test_features_of_other_types_are_converted(small: SmallDataset, kind: Any) -> None:
    for path in (small.features, small.texts):
        for_all_arrays(path, lambda rows: (rows * 10).astype(kind))
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


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


def in_the_shell(program: str, arguments: list[str], folder: Path) -> str:
    """Run a program that must fail as the user's mistake; returns the line of the error."""
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / program), *arguments],
        cwd=folder, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert "Traceback" not in done.stderr
    *log, line = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert not any(earlier.startswith("error: ") for earlier in log)
    return line


def test_a_duplicate_caption_id_in_the_shell(small: SmallDataset, tmp_path: Path) -> None:
    edit_lines(small.test_txt, lambda lines: [*lines, lines[0]])
    line = in_the_shell("method/train.py", small.flags(), tmp_path)
    assert line == f"error: {small.test_txt}: line 21: caption id 'E00#enc#0' occurs a second time"


def test_nan_in_a_worker_in_the_shell(small: SmallDataset, tmp_path: Path) -> None:
    set_rows(small.features, "T04/i3d_feat", with_value(0, np.nan))
    line = in_the_shell("method/train.py", small.flags("--num_workers", "2"), tmp_path)
    assert line.startswith(f"error: {small.features}: 'T04/i3d_feat' row 0 holds NaN")


def test_a_checkpoint_that_means_harm_in_the_shell(small: SmallDataset, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    torch.save({"model": {"a": torch.ones(1)}, "epoch": 1, "opt": Bomb(mark)}, tmp_path / "bomb.ckpt")
    line = in_the_shell("method/evaluate.py", small.flags("--eval_ckpt", str(tmp_path / "bomb.ckpt")), tmp_path)
    assert line.startswith(f"error: {tmp_path / 'bomb.ckpt'}: checkpoint refused: it contains ")
    assert line.endswith("system; nothing was executed")
    assert not mark.exists()


def test_a_wrong_flag_in_the_shell(small: SmallDataset, tmp_path: Path) -> None:
    line = in_the_shell("method/train.py", small.flags("--n_heads", "5"), tmp_path)
    assert line == "error: --n_heads 5: expected a divisor of --hidden_size 16"
