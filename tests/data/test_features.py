"""Preprocessing against the published numbers and a loop, and reading HDF5 files of every kind."""

import itertools
import os
import pickle
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from method.data.features import FeatureFile, normalize_rows, preprocess_query, preprocess_stream, sample_frames
from method.runtime.errors import InputError
from tests.helpers.golden_case import GOLDEN, draw

Rows = npt.NDArray[np.float32]


def naive_sample(rows: Rows, pieces: int) -> Rows:
    n = len(rows)
    if n <= pieces:
        return rows
    edges = [min(int(np.round(i / pieces * n)), n - 1) for i in range(pieces + 1)]
    sampled = [rows[a:b].mean(axis=0) if b > a else rows[a] for a, b in itertools.pairwise(edges)]
    return np.stack(sampled)


def test_golden_preprocessing() -> None:
    with np.load(GOLDEN / "preprocess.npz") as golden:
        names = list(golden)
        for name in names:
            n = int(name.split("/")[1])
            ours = preprocess_stream(draw(f"preprocess/{n}", (n, 4)), 128)
            np.testing.assert_allclose(ours, golden[name], atol=1e-6, err_msg=name)
    assert any(int(name.split("/")[1]) > 128 for name in names)


@given(st.integers(1, 700), st.integers(1, 130))
@settings(deadline=None, max_examples=200)
def test_sampling_equals_a_loop(n: int, pieces: int) -> None:
    rows = np.random.default_rng(n).standard_normal((n, 3)).astype(np.float32)
    sampled = sample_frames(rows, pieces)
    assert sampled.dtype == np.float32
    assert len(sampled) == min(n, pieces)
    np.testing.assert_allclose(sampled, naive_sample(rows, pieces), atol=2e-6)


def test_rows_are_divided_by_their_norm() -> None:
    rows = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-5, 0.0]])
    expected = torch.tensor([[3 / 5.00001, 4 / 5.00001], [0.0, 0.0], [0.5, 0.0]])
    torch.testing.assert_close(normalize_rows(rows), expected)


def test_queries_are_cut_and_not_averaged() -> None:
    rows = np.random.default_rng(0).standard_normal((9, 4)).astype(np.float32)
    ours = preprocess_query(rows, 5)
    torch.testing.assert_close(ours, normalize_rows(torch.from_numpy(rows))[:5])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    rows = np.arange(12.0, dtype=np.float32).reshape(3, 4)
    path = tmp_path / "features.hdf5"
    with h5py.File(path, "w") as file:
        file["v/i3d_feat"] = rows
        file["extra"] = rows[None]
        file["two"] = np.stack([rows, rows])
        file["naïve id#enc#0"] = rows
        for kind in ("f2", "f8", "i4", "i8", "u1"):
            file[kind] = rows.astype(kind)
        file["compressed"] = rows
        file["empty"] = rows[:0]
        file["null"] = h5py.Empty("f4")
        file["scalar"] = 1.0
        file["flat"] = rows[0]
        file["text"] = np.array([[b"1", b"2", b"3", b"4"]])
        file["complex"] = rows.astype(complex)
        file["nan"] = np.where(rows == 5, np.nan, rows)
        file["infinite"] = np.where(rows == 11, np.inf, rows)
        file["too large for float32"] = np.full((2, 4), 1e200)
        file["too large to square"] = np.full((2, 4), 1e30, np.float32)
        file["link"] = h5py.SoftLink("/nowhere")
    return path


@pytest.mark.parametrize("name", ["v/i3d_feat", "extra", "naïve id#enc#0", "f2", "f8", "i4", "i8", "u1"])
def test_real_numbers_of_every_type_are_read_as_float32(path: Path, name: str) -> None:
    file = FeatureFile(path)
    rows = file.read(name, 4)
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, np.arange(12.0).reshape(3, 4))
    assert file.check([name], 4) == {name: 3}


WRONG = {
    "nowhere": "'nowhere' is missing",
    "v/clip_feat": "'v/clip_feat' is missing",
    "w/i3d_feat": "'w/i3d_feat' is missing",
    "link": "'link' is missing",
    "v": "'v' is a group, expected an array",
    "two": r"'two' has shape \(2, 3, 4\), expected \(rows, 4\)",
    "empty": "'empty' has no rows, expected at least one",
    "null": r"'null' has shape \(\), expected \(rows, 4\)",
    "scalar": r"'scalar' has shape \(\), expected \(rows, 4\)",
    "flat": r"'flat' has shape \(4,\), expected \(rows, 4\)",
    "text": "'text' holds neither integers nor floats",
    "complex": "'complex' holds neither integers nor floats",
}


@pytest.mark.parametrize(("name", "message"), WRONG.items(), ids=WRONG)
def test_what_headers_give_away_is_refused_by_check_and_by_read(path: Path, name: str, message: str) -> None:
    file = FeatureFile(path)
    for use in (lambda: file.check([name], 4), lambda: file.read(name, 4)):
        with pytest.raises(InputError, match=message) as caught:
            use()
        assert str(caught.value).startswith(f"{path}: ")


def test_another_width(path: Path) -> None:
    with pytest.raises(InputError, match=r"'v/i3d_feat' has shape \(3, 4\), expected \(rows, 5\)"):
        FeatureFile(path).check(["v/i3d_feat"], 5)
    with pytest.raises(InputError, match=r"'extra' has shape \(1, 3, 4\), expected \(rows, 5\)"):
        FeatureFile(path).read("extra", 5)


@pytest.mark.parametrize(("name", "row"), [
    ("nan", 1), ("infinite", 2), ("too large for float32", 0), ("too large to square", 0),
])  # fmt: skip
def test_numbers_that_are_none_are_found_when_read(path: Path, name: str, row: int) -> None:
    file = FeatureFile(path)
    assert file.check([name], 4)
    with pytest.raises(InputError, match=f"'{name}' row {row} holds NaN, infinity or numbers too large"):
        file.read(name, 4)


def test_check_names_the_first_five_and_counts_the_rest(path: Path) -> None:
    names = ["extra", *(f"lost{i}" for i in range(7)), "empty", "i4"]
    with pytest.raises(InputError) as caught:
        FeatureFile(path).check(names, 4)
    shown = "; ".join(f"'lost{i}' is missing" for i in range(5))
    assert str(caught.value) == f"{path}: {shown}; and 3 more"


def test_a_file_that_is_none(tmp_path: Path, path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        FeatureFile(tmp_path / "nowhere.hdf5").read("v", 4)
    with pytest.raises(InputError, match="found a folder"):
        FeatureFile(tmp_path).check(["v"], 4)
    other = tmp_path / "other.hdf5"
    for content in (b"", b"not HDF5", path.read_bytes()[:-1000]):
        other.write_bytes(content)
        with pytest.raises(InputError, match=r"other\.hdf5: not a readable HDF5 file"):
            FeatureFile(other).read("extra", 4)


def test_damage_is_an_input_error_or_harmless(path: Path, tmp_path: Path) -> None:
    """Bits flipped anywhere: what is read is as it was, or differs only in its numbers, or is refused."""
    whole = path.read_bytes()
    names = ["v/i3d_feat", "extra", "f8", "i4"]
    random = np.random.default_rng(0)
    refused = harmless = 0
    for _ in range(60):
        damaged = bytearray(whole)
        damaged[random.integers(len(whole))] ^= 1 << random.integers(8)
        other = tmp_path / "damaged.hdf5"
        other.write_bytes(damaged)
        file = FeatureFile(other)
        try:
            file.check(names, 4)
            for name in names:
                rows = file.read(name, 4)
                assert rows.shape[1] == 4
                assert np.isfinite(rows).all()
        except InputError as error:
            refused += str(error).startswith(f"{other}: ")
        else:
            harmless += 1
    assert refused + harmless == 60
    assert refused > 0


def test_opened_late_and_by_each_process(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = FeatureFile(path)
    assert file._file is None
    expected = file.read("extra", 4)
    copy = pickle.loads(pickle.dumps(file))
    assert copy._file is None
    np.testing.assert_array_equal(copy.read("extra", 4), expected)

    parents = file._file
    own = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: own + 1)  # as in a data worker
    np.testing.assert_array_equal(file.read("f8", 4), file.read("extra", 4))
    assert file._file is not parents
