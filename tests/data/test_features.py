"""Reading and checking HDF5 feature files, valid, wrong and corrupt."""

import multiprocessing
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest

from method.data.features import FeatureFile
from method.runtime.errors import InputError


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
        file["flat"] = rows[1]
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
    "text": "'text' holds neither integers nor floats",
    "complex": "'complex' holds neither integers nor floats",
}


@pytest.mark.parametrize(("name", "message"), WRONG.items(), ids=WRONG)
def test_wrong_headers_are_refused_by_check_and_read(path: Path, name: str, message: str) -> None:
    file = FeatureFile(path)
    for use in (lambda: file.check([name], 4), lambda: file.read(name, 4)):
        with pytest.raises(InputError, match=message) as caught:
            use()
        assert str(caught.value).startswith(f"{path}: ")


def test_a_vector_is_one_row(path: Path) -> None:
    file = FeatureFile(path)
    assert file.check(["flat"], 4) == {"flat": 1}
    assert file.read("flat", 4).tolist() == [[4.0, 5.0, 6.0, 7.0]]
    assert file.read_middle("flat", 4).tolist() == [4.0, 5.0, 6.0, 7.0]
    with pytest.raises(InputError, match=r"'flat' has shape \(4,\), expected \(rows, 5\)"):
        file.check(["flat"], 5)


def test_another_width(path: Path) -> None:
    with pytest.raises(InputError, match=r"'v/i3d_feat' has shape \(3, 4\), expected \(rows, 5\)"):
        FeatureFile(path).check(["v/i3d_feat"], 5)
    with pytest.raises(InputError, match=r"'extra' has shape \(1, 3, 4\), expected \(rows, 5\)"):
        FeatureFile(path).read("extra", 5)


@pytest.mark.parametrize(("name", "row"), [
    ("nan", 1), ("infinite", 2), ("too large for float32", 0), ("too large to square", 0),
])  # fmt: skip
def test_values_that_are_not_finite_are_refused_when_read(path: Path, name: str, row: int) -> None:
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


def test_a_missing_or_corrupt_file(tmp_path: Path, path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        FeatureFile(tmp_path / "nowhere.hdf5").read("v", 4)
    with pytest.raises(InputError, match="found a folder"):
        FeatureFile(tmp_path).check(["v"], 4)
    other = tmp_path / "other.hdf5"
    for content in (b"", b"not HDF5", path.read_bytes()[:-1000]):
        other.write_bytes(content)
        with pytest.raises(InputError, match=r"other\.hdf5: not a readable HDF5 file"):
            FeatureFile(other).read("extra", 4)


def test_corruption_is_an_input_error_or_harmless(path: Path, tmp_path: Path) -> None:
    """A bit flipped anywhere is refused, or changes nothing but values."""
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


def test_pickled_and_forked_readers_open_the_file_themselves(path: Path) -> None:
    """Shown by a new file under the same path: the handle of the process that opened the old one keeps its content."""
    file = FeatureFile(path)
    before = file.read("extra", 4)
    path.unlink()
    with h5py.File(path, "w") as other:
        other["extra"] = before + 1

    def read_in_child() -> None:
        results.put(file.read("extra", 4))

    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    child = context.Process(target=read_in_child)
    child.start()
    np.testing.assert_array_equal(results.get(), before + 1)
    child.join()
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(file)).read("extra", 4), before + 1)
    np.testing.assert_array_equal(file.read("extra", 4), before)
