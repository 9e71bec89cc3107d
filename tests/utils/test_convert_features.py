"""Features in the older binary form and in NumPy files, converted to the layout of training."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from method.data.preprocessing import FloatRows
from method.runtime.errors import InputError
from utils.convert_features import main
from utils.feature_files import binary, hdf5

VIDEOS = {"v_a": 3, "-b_1.0": 1, "c/d's": 12}
WIDTH = 5


def write_binary(folder: Path, shuffled: bool = True) -> dict[str, FloatRows]:
    """The four files, rows in random order; returns the frames of each video."""
    random = np.random.default_rng(0)
    folder.mkdir()
    frames = {video: [f"{video}_{n}" for n in range(count)] for video, count in VIDEOS.items()}
    ids = [frame for own in frames.values() for frame in own] + ["unused_0"]
    if shuffled:
        random.shuffle(ids)
    rows_ND = random.standard_normal((len(ids), WIDTH)).astype(np.float32)
    rows_ND[0, 0], rows_ND[1, 1] = -0.0, 1e-42  # a sign and a subnormal number, which a conversion could lose
    rows_ND.astype("<f4").tofile(folder / "feature.bin")
    (folder / "shape.txt").write_text(f"{len(ids)} {WIDTH}\n")
    (folder / "id.txt").write_text(" ".join(ids[:4]) + "\n" + "\n".join(ids[4:]))
    (folder / "video2frames.txt").write_text(repr(frames).replace("], ", "],\n "))
    return {video: rows_ND[[ids.index(frame) for frame in own]] for video, own in frames.items()}


def read(path: Path, key: str) -> dict[str, bytes]:
    with h5py.File(path, "r") as file:
        return {video: file[f"{video}/{key}"][()].tobytes() for video in VIDEOS}


def convert(*words: object) -> None:
    main([str(word) for word in words])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_binary(tmp_path / "source")
    return tmp_path / "source"


@pytest.mark.parametrize("shuffled", [False, True])
def test_every_row_arrives_bit_by_bit(tmp_path: Path, shuffled: bool, caplog: pytest.LogCaptureFixture) -> None:
    expected = write_binary(tmp_path / "source", shuffled)
    convert(tmp_path / "source", tmp_path / "new" / "f.hdf5", "--key", "i3d_feat")
    assert read(tmp_path / "new" / "f.hdf5", "i3d_feat") == {video: rows.tobytes() for video, rows in expected.items()}
    assert any("1 of 17 rows belong to no video" in message for message in caplog.messages)


def test_a_stream_is_added_to_a_file(tmp_path: Path, source: Path, caplog: pytest.LogCaptureFixture) -> None:
    target, clips = tmp_path / "f.hdf5", tmp_path / "clips"
    convert(source, target, "--key", "i3d_feat")
    before = read(target, "i3d_feat")
    clips.mkdir()
    arrays = {"v_a": np.ones((2, 3), np.float16), "new.0": np.arange(3.0)}
    np.save(clips / "v_a.npy", arrays["v_a"])
    np.savez(clips / "new.0.npz", features=arrays["new.0"], other=np.zeros(3))
    with pytest.raises(InputError, match=r"new\.0\.npz: holds 'features', 'other', expected one array, or --array"):
        convert(clips, target, "--key", "clip_feat", "--add")
    convert(clips, target, "--key", "clip_feat", "--add", "--array", "features")
    assert read(target, "i3d_feat") == before
    with h5py.File(target) as file:
        assert file["v_a/clip_feat"][()].tolist() == [[1.0] * 3] * 2
        assert file["new.0/clip_feat"][()].tolist() == [[0.0, 1.0, 2.0]]
    said = " ".join(caplog.messages)
    assert "2 videos have no clip_feat: -b_1.0; c" in said
    assert "1 videos have only clip_feat: new.0" in said
    assert "float64, rounded to float32" in said
    with pytest.raises(InputError, match="has 'v_a/i3d_feat' already"):
        convert(source, target, "--key", "i3d_feat", "--add")
    with pytest.raises(InputError, match="exists already; --add"):
        convert(source, target, "--key", "other")


def edited(name: str, edit: Callable[[str], str]) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(edit((folder / name).read_text()))


def with_value(value: float) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        rows = np.fromfile(folder / "feature.bin", "<f4")
        rows[WIDTH * 4] = value
        rows.tofile(folder / "feature.bin")

    return change


FRAMES = "video2frames.txt"
WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "shape": (edited("shape.txt", lambda text: "17"), "shape.txt: line 1: expected two whole numbers"),
    "huge": (edited("shape.txt", lambda text: "999999999999 9"), "feature.bin: 340 bytes, expected 35999999999964: "),
    "short": (lambda folder: os.truncate(folder / "feature.bin", 339), "feature.bin: 339 bytes, expected 340"),
    "no features": (lambda folder: (folder / FRAMES).unlink(), "video2frames.txt: no such file"),
    "id twice": (edited("id.txt", lambda text: text.replace("v_a_1", "v_a_2")), "id 'v_a_2' is that of row"),
    "too few ids": (edited("id.txt", lambda text: text.replace("unused_0", "")), "id.txt: 16 ids, expected 17"),
    "frame missing": (edited(FRAMES, lambda text: text.replace("v_a_1", "v_a_7")), "1 of 3 frames not in id.txt"),
    "frame twice": (edited(FRAMES, lambda text: text.replace("v_a_1", "v_a_2")), "line 1: .*a frame occurs twice"),
    "order": (edited(FRAMES, lambda text: text.replace('_2"', "_x").replace('_10"', '_2"').replace("_x", '_10"')),
              "line 3: video \"c/d's\": .*after.*--any_order"),
    "video twice": (edited(FRAMES, lambda text: text.replace("-b_1.0'", "v_a'")), "line 2: video 'v_a' occurs a"),
    "hash": (edited(FRAMES, lambda text: text.replace("'v_a'", "'v#a'")), "line 1: video 'v#a': not the id"),
    "no frames": (edited(FRAMES, lambda text: "{'v_a': []}"), "line 1: video 'v_a' has no frames"),
    "no videos": (edited(FRAMES, lambda text: "{}"), "no videos"),
    "cut": (edited(FRAMES, lambda text: text[:-3]), "line 3: expected"),
    "code": (edited(FRAMES, lambda text: "__import__('os').remove('x')"), "line 1: expected a string or a bracket"),
    "a call": (edited(FRAMES, lambda text: "{'v_a': ('v_a_0')('v_a_1')}"), r"line 1: expected .*, found '\('"),
    "nan": (with_value(np.nan), r"feature.bin: video .*: row \d+ holds NaN or infinity"),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_named(tmp_path: Path, source: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(source)
    with pytest.raises(InputError, match=message):
        convert(source, tmp_path / "f.hdf5", "--key", "i3d_feat")
    assert not (tmp_path / "f.hdf5").exists()
    assert not list(tmp_path.glob(".*.part"))


def test_lists_in_another_order_are_kept_on_request(tmp_path: Path, source: Path) -> None:
    WRONG["order"][0](source)
    convert(source, tmp_path / "f.hdf5", "--key", "k", "--any_order")
    found = np.frombuffer(read(tmp_path / "f.hdf5", "k")["c/d's"], np.float32).reshape(-1, WIDTH)
    assert len(found) == 12


def test_the_dictionary_is_read_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = {f"video\t{n}\"'é\\": [f"{n}_{i}" for i in range(n % 7)] for n in range(300)}
    path = tmp_path / "f.txt"
    path.write_text(repr(frames).replace("], ", "],\n"), "utf-8")
    monkeypatch.setattr(binary, "_LONGEST_TOKEN", 40)
    for size in (1, 7, 1000):
        monkeypatch.setattr(binary, "_BLOCK", size)
        entries = list(binary.read_frames(path))
        assert {video: own for _, video, own in entries} == frames
        assert [line for line, *_ in entries] == list(range(1, 301))


def test_a_killed_conversion_leaves_the_old_file_and_starts_again(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "f.hdf5"
    convert(source, target, "--key", "i3d_feat")
    before = target.read_bytes()
    (tmp_path / ".f.hdf5.part").write_bytes(b"half a file of a killed process")

    with monkeypatch.context() as patch:
        patch.setattr(hdf5, "_compare", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            convert(source, target, "--key", "again", "--add")
    assert target.read_bytes() == before
    convert(source, target, "--key", "again", "--add")
    assert read(target, "again") == read(target, "i3d_feat")


def test_what_is_read_back_is_compared(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = hdf5._write

    def write(file: h5py.File, *rest: object) -> None:
        real(file, *rest)  # type: ignore[arg-type]
        file["v_a/k"][1, 2] += 1

    monkeypatch.setattr(hdf5, "_write", write)
    with pytest.raises(InputError, match=r"f\.hdf5: 'v_a/k' differs from .*v_a.* when read back"):
        convert(source, tmp_path / "f.hdf5", "--key", "k")
    assert not (tmp_path / "f.hdf5").exists()


def test_a_full_disk_is_noticed_before_anything_is_written(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("method.runtime.hub.fetch.free_bytes", lambda folder: 1000.0)
    with pytest.raises(InputError, match="not enough disk space"):
        convert(source, tmp_path / "f.hdf5", "--key", "k")


def test_a_file_that_cannot_grow_is_one_line(tmp_path: Path, source: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))
    try:
        with pytest.raises(InputError, match=r"f\.hdf5: cannot be written \([Ff]ile too large\)"):
            convert(source, tmp_path / "f.hdf5", "--key", "k")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path.name for path in tmp_path.iterdir()} <= {"source", ".f.hdf5.lock"}


def test_wrong_uses(tmp_path: Path, source: Path) -> None:
    target = tmp_path / "f.hdf5"
    for words, message in (
        ([tmp_path / "nowhere", target, "--key", "k"], "nowhere: no such folder"),
        ([tmp_path, target, "--key", "k"], "expected feature.bin and its tables, or .npy or .npz files"),
        ([source, target, "--key", "a/b"], "--key 'a/b': expected the name of a stream"),
        ([source, target, "--key", "k", "--add"], "no such file, expected one to add to"),
    ):
        with pytest.raises(InputError, match=message):
            convert(*words)
    (tmp_path / "x.npy").write_bytes(b"no array")
    with pytest.raises(InputError, match=r"x\.npy: not a readable NumPy file"):
        convert(tmp_path, target, "--key", "k")
    np.save(tmp_path / "x.npy", np.array([{"a": 1}]))  # a pickle, which is not opened
    with pytest.raises(InputError, match=r"x\.npy: not a readable NumPy file"):
        convert(tmp_path, target, "--key", "k")
