"""Arrays stored in other files than the feature file: resolved, read, and refused when a file is missing."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from method.data.features import FeatureFile
from method.runtime.errors import InputError
from tests.helpers.linked_files import WAYS, link
from tests.helpers.small_dataset import SmallDataset

LINKED = [way for way in WAYS if way != "symbolic"]
NAME, WIDTH = "T03/i3d_feat", 10


@pytest.mark.parametrize("way", LINKED)
def test_linked_arrays_are_read_and_their_files_tracked(small: SmallDataset, way: str) -> None:
    expected = FeatureFile(small.features).read(NAME, WIDTH)
    assert FeatureFile(small.features).linked([NAME]) == {}
    part = link(small.features, way)
    file = FeatureFile(small.features)
    assert np.array_equal(file.read(NAME, WIDTH), expected)
    assert np.array_equal(file.read_middle(NAME, WIDTH), expected[len(expected) // 2])
    before = file.linked([NAME, "T04/clip_feat"])
    assert set(before) == {NAME, "T04/clip_feat"}
    assert str(part) in {source["path"] for source in before[NAME]}
    assert not file.has_changed()
    os.utime(part)
    assert file.has_changed()
    del file
    assert FeatureFile(small.features).linked([NAME])[NAME] != before[NAME]


def test_a_link_to_another_array_of_the_same_file_is_a_change(small: SmallDataset) -> None:
    part = link(small.features, "chain")
    before = FeatureFile(small.features).linked([NAME])
    with h5py.File(part.with_name("middle.hdf5"), "r+") as middle:
        del middle["T03"]
        middle["T03"] = h5py.ExternalLink(part.name, "T06")  # of as many rows
    assert FeatureFile(small.features).linked([NAME]) != before


def test_numbered_sources_of_a_virtual_dataset(tmp_path: Path) -> None:
    """%b counts the sources of a growing dataset, up to the first missing one."""
    for block in range(3):
        with h5py.File(tmp_path / f"part 100% {block}.hdf5", "w") as file:
            file["rows"] = np.full((2, 4), block + 1, np.float32)
    space = h5py.h5s.create_simple((2, 4), (h5py.h5s.UNLIMITED, 4))
    space.select_hyperslab((0, 0), (h5py.h5s.UNLIMITED, 1), (2, 1), (2, 4))
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_virtual(space, b"part 100%% %b.hdf5", b"rows", h5py.h5s.create_simple((2, 4)))
    path = tmp_path / "main.hdf5"
    with h5py.File(path, "w") as file:
        h5py.h5d.create(file.id, b"v", h5py.h5t.NATIVE_FLOAT, space, properties)
    rows = FeatureFile(path).read("v", 4)
    assert rows[:, 0].tolist() == [1, 1, 2, 2, 3, 3]
    sources = [Path(source["path"]).name for source in FeatureFile(path).linked(["v"])["v"]]
    assert sources == ["main.hdf5", *(f"part 100% {block}.hdf5" for block in range(3))]


def lose_file(part: Path) -> None:
    part.unlink()


def lose_array(part: Path) -> None:
    with h5py.File(part, "r+") as file:
        del file["T03"]


def no_hdf5(part: Path) -> None:
    part.write_bytes(b"of another kind")


@pytest.mark.parametrize(("way", "damage", "message"), [
    ("external", lose_file, r"'T03/i3d_feat' is a link to part\.hdf5, which is missing"),
    ("chain", lose_file, r"'T03/i3d_feat' is a link to part\.hdf5, which is missing"),
    ("external", no_hdf5, r"'T03/i3d_feat' is a link to .*part\.hdf5, which is missing or no HDF5 file"),
    ("external", lose_array, "'T03/i3d_feat' is missing"),
    ("virtual", lose_file, r"'T03/i3d_feat' is a virtual dataset, and its source 'T03/i3d_feat' in middle\.hdf5"),
    ("virtual", lose_array, r"'T03/i3d_feat' is a virtual dataset, and its source 'T03/i3d_feat' in middle\.hdf5"),
    ("raw", lose_file, r"'T03/i3d_feat' is stored in the raw file .*part\.hdf5, which is missing"),
])  # fmt: skip
def test_a_missing_target_is_an_error_not_zeros(
    small: SmallDataset, way: str, damage: Callable[[Path], None], message: str
) -> None:
    damage(link(small.features, way))
    file = FeatureFile(small.features)
    for use in (lambda: file.check([NAME], WIDTH), lambda: file.read(NAME, WIDTH), lambda: file.linked([NAME])):
        with pytest.raises(InputError, match=message):
            use()


def test_a_target_removed_while_in_use_is_an_error_not_zeros(small: SmallDataset) -> None:
    part = link(small.features, "virtual")
    file = FeatureFile(small.features)
    file.check([NAME], WIDTH)
    part.unlink()
    with pytest.raises(InputError, match=rf"'T03/i3d_feat' is read from {part}, which is missing"):
        file.read(NAME, WIDTH)
