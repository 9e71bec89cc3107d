"""Datasets made from one's own videos: found by name, and their YAML file updated without losing a line."""

from __future__ import annotations

from pathlib import Path

import pytest

from method.config.options import read_options
from method.config.own_dataset import own_features, own_yaml, update_yaml
from method.runtime.errors import InputError


def test_a_dataset_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    update_yaml(own_yaml(tmp_path, "holiday"), {"margin": 0.5, "video_feat_path": "dataset/f.hdf5"})
    options = read_options(["--dataset_name", "holiday", "--root_path", str(tmp_path)])
    assert (options.margin, options.bsz) == (0.5, 128)
    assert options.video_feat_path == tmp_path / "dataset/f.hdf5"
    monkeypatch.chdir(tmp_path)
    assert read_options(["--dataset_name", "holiday"]).margin == 0.5
    with pytest.raises(InputError, match=r"--dataset_name other: neither .*other_i3d/other\.yaml, expected one of"):
        read_options(["--dataset_name", "other"])


def test_a_run_on_it_is_found_by_its_root_and_needs_no_yaml(tmp_path: Path) -> None:
    path = own_yaml(tmp_path, "holiday")
    update_yaml(path, {"margin": 0.5, "lr": 0.1})
    earlier = {"dataset_name": "holiday", "root_path": str(tmp_path), "margin": 0.7}
    options = read_options([], saved=lambda given: earlier)
    assert (options.margin, options.lr) == (0.7, 0.1)
    path.unlink()
    assert read_options([], saved=lambda given: earlier).margin == 0.7


@pytest.mark.parametrize("name", ["../holiday", "a/b", "..", "", " a"])
def test_a_name_is_no_path(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="expected the name of a folder, not a path"):
        own_features(tmp_path, name)


def test_an_update_keeps_what_the_user_wrote(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    update_yaml(path, {"bsz": 3, "video_feat_path": "a: b.hdf5", "moments": "m.jsonl"})
    assert path.read_text() == "base: base.yaml\nbsz: 3\nvideo_feat_path: 'a: b.hdf5'\nmoments: m.jsonl\n"
    path.write_text("# mine\nlr: 0.1  # tuned\nbsz: 3\nbsz_old: 1\n")
    update_yaml(path, {"bsz": 5, "lr": None, "moments": None, "seed": 1})
    assert path.read_text() == "# mine\nbsz: 5\nbsz_old: 1\nseed: 1\n"
    before = path.stat().st_mtime_ns
    update_yaml(path, {"seed": 1})
    assert path.stat().st_mtime_ns == before
