"""Paths of the commands in utils/: what is no path is named in a line, before anything else happens."""

from collections.abc import Callable
from pathlib import Path

import pytest

from method.runtime.errors import InputError
from utils import (
    compare_runs,
    convert_checkpoint,
    convert_features,
    download_data,
    download_roberta,
    make_demo_dataset,
    make_qvhighlights,
    print_metrics,
    reproduce,
    summarize_runs,
    tune_text_encoder,
)


@pytest.mark.parametrize(("main", "words", "name"), [
    (download_data.main, ["charades", "--root_path"], "--root_path"),
    (download_roberta.main, ["--root_path"], "--root_path"),
    (download_roberta.main, ["--out"], "--out"),
    (make_demo_dataset.main, ["--out"], "--out"),
    (print_metrics.main, [], "metrics"),
    (compare_runs.main, ["a"], "RUN"),
    (summarize_runs.main, ["a"], "FOLDER"),
    (tune_text_encoder.main, ["tvr", "--root_path"], "--root_path"),
    (tune_text_encoder.main, ["tvr", "--base_encoder"], "--base_encoder"),
    (tune_text_encoder.main, ["tvr", "--out"], "--out"),
    (convert_checkpoint.main, [], "source"),
    (convert_checkpoint.main, ["model.ckpt"], "target"),
    (convert_checkpoint.main, ["model.ckpt", "--safetensors"], "--safetensors"),
    (convert_features.main, ["--key", "k"], "source"),
    (make_qvhighlights.main, ["data", "--features"], "--features"),
    (reproduce.main, ["tvr", "--root_path"], "--root_path"),
])  # fmt: skip
def test_no_path(
    main: Callable[[list[str]], None], words: list[str], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pwd.getpwnam", lambda name: {}[name])
    for path, message in (("", "expected a path, found ''"), ("~nobody/x", "no home folder is known for ~nobody")):
        with pytest.raises(InputError, match=f"argument {name}: .*{message}"):
            main([*words, path])
    assert not list(tmp_path.iterdir())
