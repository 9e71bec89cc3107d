"""Checks before the first step."""

import logging
from pathlib import Path

import h5py
import numpy as np
import pytest

from method.data.captions import Caption
from method.data.dataset import FeatureReader
from method.data.dataset_files import RELEASED, check_files
from method.data.features import FeatureFile
from method.data.splits import Split, check_split, describe, warn_train_test_overlap
from method.runtime.errors import InputError
from tests.helpers.small_dataset import QUERY_WIDTH, STREAMS, WIDTHS, SmallDataset
from utils.download_data import RELEASES


def reader_of(small: SmallDataset, **widths: int) -> FeatureReader:
    widths = {**WIDTHS, "query": QUERY_WIDTH, **widths}
    streams = {name: (key, widths[key]) for name, (key, _) in STREAMS.items()}
    return FeatureReader(FeatureFile(small.features), FeatureFile(small.texts), streams, widths["query"], 12, 5)


def test_a_split_has_all_lengths(small: SmallDataset) -> None:
    split = check_split("evaluated split", small.test_txt, reader_of(small))
    assert split.video_ids == [f"E{i:02d}" for i in range(8)]
    assert describe(split) == "evaluated split: 8 videos, 20 captions"
    with h5py.File(small.features, locking=False) as videos, h5py.File(small.texts, locking=False) as texts:
        assert split.frames == {
            branch: {video: len(videos[video][key]) for video in split.video_ids}
            for branch, key in (("action", "i3d_feat"), ("object", "clip_feat"))
        }
        assert split.tokens == {caption.id: len(texts[caption.id]) for caption in split.captions}


def test_only_headers_are_read(small: SmallDataset) -> None:
    with h5py.File(small.features, "r+") as videos:
        for video in small.videos_of(small.test_txt):
            videos[video]["i3d_feat"][:] = np.nan
    assert check_split("evaluated split", small.test_txt, reader_of(small))


@pytest.mark.parametrize(("widths", "message"), [
    ({"i3d_feat": 11}, r"'E00/i3d_feat' has shape \(10, 10\), expected \(rows, 11\); .*; and 3 more$"),
    ({"clip_feat": 7}, r"'E00/clip_feat' has shape \(6, 6\), expected \(rows, 7\); .*; and 3 more$"),
    ({"query": 9}, r"'E00#enc#0' has shape \(3, 8\), expected \(rows, 9\); .*; and 15 more$"),
])  # fmt: skip
def test_wrong_widths(small: SmallDataset, widths: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_split("evaluated split", small.test_txt, reader_of(small, **widths))


def test_captions_and_videos_without_features(small: SmallDataset) -> None:
    lines = small.test_txt.read_text()
    small.test_txt.write_text(lines + "lost#enc#0 a person sits\nE01#enc#99 a person stands\n")
    with pytest.raises(InputError, match=r"query_feat\.hdf5: 'lost#enc#0' is missing; 'E01#enc#99' is missing$"):
        check_split("evaluated split", small.test_txt, reader_of(small))
    small.test_txt.write_text(lines)
    with h5py.File(small.features, "r+") as videos:
        del videos["E03"], videos["E05/clip_feat"]
    with pytest.raises(InputError, match=r"numpy\.hdf5: 'E03/i3d_feat' is missing$"):
        check_split("evaluated split", small.test_txt, reader_of(small))


def split(name: str, videos: list[str]) -> Split:
    return Split(name, [Caption(f"{video}#0", video, "") for video in videos], {}, {})


def test_train_test_overlap_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        warn_train_test_overlap(split("one", ["a", "b"]), split("other", ["c", "d"]))
        assert not caplog.records
        warn_train_test_overlap(split("one", list("abcdefgh")), split("other", list("hgfedcbz")))
    assert caplog.messages == ["7 videos are in both one and other: 'b'; 'c'; 'd'; 'e'; 'f'; and 2 more"]


def test_missing_files_are_all_named(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.touch()
    check_files({"video_feat_path": there}, "charades", tmp_path)
    with pytest.raises(InputError) as caught:
        check_files({"a": tmp_path / "x", "b": there, "c": tmp_path / "y"}, "charades", tmp_path)
    message = str(caught.value)
    assert f"--a: no {tmp_path / 'x'}; --c: no {tmp_path / 'y'}" in message
    assert "--b" not in message


def test_files_without_a_path(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--text_feat_path: dataset mine names no such file"):
        check_files({"video_feat_path": tmp_path, "text_feat_path": None}, "mine", tmp_path)


@pytest.mark.parametrize(("dataset", "folder", "command"), [
    ("charades", "dataset/charades_i3d/TextData", "python utils/download_data.py charades --root_path {root}"),
    ("charades", "elsewhere", None),
    ("demo", "dataset/demo_i3d/FeatureData", "python utils/make_demo_dataset.py --out {root}"),
    ("mine", "dataset/mine_i3d/FeatureData", None),
])  # fmt: skip
def test_a_command_is_suggested_only_if_it_writes_the_files(
    tmp_path: Path, dataset: str, folder: str, command: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = {"video_feat_path": tmp_path / folder / "features.hdf5"}
    with pytest.raises(InputError) as caught:
        check_files(missing, dataset, tmp_path)
    assert ("python " in str(caught.value)) == (command is not None)
    if command is not None:
        assert str(caught.value).endswith(command.format(root=tmp_path))
    if dataset == "charades" and command is not None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(InputError, match=r"python utils/download_data\.py charades$"):
            check_files(missing, dataset, tmp_path)


def test_suggested_datasets_can_be_downloaded() -> None:
    assert sorted(RELEASED) == sorted(RELEASES)
