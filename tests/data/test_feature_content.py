"""The check of feature content: the digest, and arrays of zeros."""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from method.data.dataset import FeatureReader
from method.data.features import FeatureFile
from method.data.splits import check_content, check_split
from method.runtime.errors import InputError
from tests.helpers.linked_files import link
from tests.helpers.small_dataset import QUERY_WIDTH, STREAMS, SmallDataset


def check(small: SmallDataset) -> str:
    reader = FeatureReader(FeatureFile(small.features), FeatureFile(small.texts), STREAMS, QUERY_WIDTH, 6, 3)
    return check_content(check_split("training split", small.train_txt, reader), reader)


def rewrite(path: Path, name: str, way: str) -> None:
    with h5py.File(path, "r+") as file:
        rows = file[name][()]
        del file[name]
        if way == "zeros":
            file.create_dataset(name, rows.shape, "f4")
        elif way == "another type":
            file[name] = rows.astype(np.float64)[None]
        else:
            file[name] = rows + 1


@pytest.mark.parametrize(("name", "way", "same"), [
    ("T03/clip_feat", "another type", True),
    ("T03/clip_feat", "other numbers", False),
    ("T11/i3d_feat", "other numbers", False),
    ("T03#enc#0", "other numbers", False),
    ("E03/clip_feat", "other numbers", True),  # of the other split
])  # fmt: skip
def test_the_digest_depends_on_values(small: SmallDataset, name: str, way: str, same: bool) -> None:
    before = check(small)
    rewrite(small.texts if "#" in name else small.features, name, way)
    assert (check(small) == before) == same


def test_the_digest_of_a_copy_and_of_links_is_the_same(small: SmallDataset) -> None:
    before = check(small)
    shutil.copy(small.features, small.features.with_name("copy"))
    small.features.with_name("copy").replace(small.features)
    assert check(small) == before
    link(small.features, "virtual")
    assert check(small) == before


def test_arrays_of_zeros_are_a_warning(small: SmallDataset, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("T03/clip_feat", "T05/clip_feat"):
        rewrite(small.features, name, "zeros")
    with h5py.File(small.features, "r+") as file:
        file["T04/clip_feat"][len(file["T04/clip_feat"]) // 2] = 0  # not all of it
    check(small)
    (message,) = caplog.messages
    assert message.startswith(
        f"{small.features}: 2 of 12 clip_feat arrays of the training split are all zeros, the first is 'T03/clip_feat'"
    )


def test_a_stream_of_zeros_is_refused(small: SmallDataset) -> None:
    for video in small.videos_of(small.train_txt):
        rewrite(small.features, f"{video}/i3d_feat", "zeros")
    with pytest.raises(InputError, match="12 of 12 i3d_feat arrays of the training split are all zeros, expected"):
        check(small)
