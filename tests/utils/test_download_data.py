"""The command that fetches the released data and checkpoints, against a hub on the loopback."""

import io
import json
import os
import resource
import shutil
import stat
import subprocess
import sys
import tarfile
import time
import zipfile
from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import h5py
import numpy as np
import pytest

from method.runtime.errors import InputError
from tests.helpers.paths import REPOSITORY
from tests.utils.fake_hub import FakeHub, Fault
from utils import download_data
from utils.download_data import HUB_REPOSITORY, data_files, main

DiskUsage = namedtuple("DiskUsage", "total used free")
VIDEOS = ("AAAAA", "BBBBB", "CCCCC", "DDDDD")
FEATURES = "FeatureData/charades_clip_i3d_numpy.hdf5"
TRAIN = "TextData/charadestrain.caption.txt"
OPTIONAL = tuple(
    f"TextData/charades_{part}_dict.json" for part in ("id_action", "total_action", "id_object", "total_object")
)


def hdf5(write: Callable[[h5py.File], None]) -> bytes:
    """The bytes of an HDF5 file."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        write(file)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def charades() -> dict[str, bytes]:
    """A dataset of four videos: name below its folder -> content."""
    random = np.random.default_rng(0)
    captions = {f"{video}#enc#{i}": "person opens the door." for video in VIDEOS for i in range(2)}

    def features(file: h5py.File) -> None:
        for video in VIDEOS:
            file[f"{video}/i3d_feat"] = random.normal(size=(7, 1024)).astype("float32")
            file[f"{video}/clip_feat"] = random.normal(size=(5, 512)).astype("float32")

    def queries(file: h5py.File) -> None:
        for caption in captions:
            file[caption] = random.normal(size=(6, 1024)).astype("float32")

    lines = [f"{caption} {text}\n" for caption, text in captions.items()]
    words = {"action": {"opens": "VBZ"}, "object": {"door": "NN"}}
    lists = {"action": {"VBZ": ["opens", "closes"]}, "object": {"NN": ["door", "book"]}}
    files = {
        FEATURES: hdf5(features),
        TRAIN: "".join(lines[:4]).encode(),
        "TextData/charadesval.caption.txt": "".join(lines[4:]).encode(),
        "TextData/roberta_charades_query_feat.hdf5": hdf5(queries),
    }
    for kind in words:
        files[f"TextData/charades_id_{kind}_dict.json"] = json.dumps(dict.fromkeys(captions, words[kind])).encode()
        files[f"TextData/charades_total_{kind}_dict.json"] = json.dumps(lists[kind]).encode()
    return files


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub with nothing on it yet."""
    with FakeHub() as hub:
        hub.environment(monkeypatch)
        yield hub


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to fetch to; the dataset is not checked at the end, that the check was asked for is."""
    asked: list[list[str]] = []
    monkeypatch.setattr(download_data, "check_dataset", asked.append)
    monkeypatch.setattr(download_data, "asked", asked, raising=False)
    return tmp_path


def held(root: Path, dataset: str = "charades") -> dict[str, bytes]:
    """The visible files of a dataset's folder."""
    folder = root / "dataset" / f"{dataset}_i3d"
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def under(folder: str, files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The same files in a folder."""
    return {f"{folder}/{name}": content for name, content in files.items()}


def run(root: Path, *arguments: str) -> None:
    """The command, in this process."""
    main(["charades", "--root_path", str(root), *arguments])


def zipped(files: Mapping[str, bytes], links: Mapping[str, str] | None = None) -> bytes:
    """A zip archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        for name, target in (links or {}).items():
            entry = zipfile.ZipInfo(name)
            entry.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(entry, target)
    return buffer.getvalue()


def tarred(files: Mapping[str, bytes], links: Mapping[str, str] | None = None) -> bytes:
    """A tar archive, compressed."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        for name, target in (links or {}).items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            archive.addfile(entry)
    return buffer.getvalue()


@pytest.mark.parametrize(("dataset", "prefix"), [("charades", "charades"), ("activitynet", "anet"), ("tvr", "tvr")])
def test_every_dataset_goes_where_its_launcher_looks(hub: FakeHub, root: Path, dataset: str, prefix: str) -> None:
    names = [f"FeatureData/{prefix}_clip_i3d_numpy.hdf5", f"TextData/roberta_{dataset}_query_feat.hdf5"]
    names += [f"TextData/{dataset}{split}.caption.txt" for split in ("train", "val")]
    names += [f"TextData/{prefix}_{of}_{kind}_dict.json" for of in ("id", "total") for kind in ("action", "object")]
    assert set(data_files(dataset)[1]) == set(names)
    files = {name: name.encode() for name in names}
    hub.host(HUB_REPOSITORY, under(f"{prefix}_dataset", files) | {f"{prefix}.ckpt": b"weights"})
    main([dataset, "--root_path", str(root), "--checkpoint"])
    assert held(root, dataset) == files
    assert (root / "checkpoints" / f"{prefix}.ckpt").read_bytes() == b"weights"


@pytest.mark.parametrize("layout", ["nested", "flat"])
def test_files_are_found_at_any_depth_and_others_are_left(
    hub: FakeHub, root: Path, charades: dict[str, bytes], layout: str, capsys: pytest.CaptureFixture[str]
) -> None:
    files = charades if layout == "nested" else {Path(name).name: content for name, content in charades.items()}
    where = "release/v1/charades_dataset/data" if layout == "nested" else "charades_dataset"
    extra = {
        f"{where}/notes.md": b"notes",
        f"{where}/last.ckpt": b"x",
        "anet_dataset/anet_clip_i3d_numpy.hdf5": b"x",
        "charades.ckpt": b"x",
    }
    hub.host(HUB_REPOSITORY, under(where, files) | extra)
    run(root)
    assert held(root) == charades
    assert sorted(hub.bodies()) == sorted(under(where, files))
    assert not (root / "checkpoints").exists()
    assert download_data.asked == [["charades", "--root_path", str(root)]]  # type: ignore[attr-defined]
    printed = capsys.readouterr().out
    assert printed.count("notes.md") == 1
    assert "anet" not in printed
    assert "ckpt" not in printed


def test_a_complete_download_is_recognised_without_a_request(
    hub: FakeHub, root: Path, charades: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    hub.host(HUB_REPOSITORY, under("charades_dataset", charades) | {"models/charades.ckpt": b"weights"})
    run(root)
    hub.requests.clear()
    run(root)
    assert hub.requests == []
    run(root, "--checkpoint")
    assert hub.bodies() == ["models/charades.ckpt"]
    hub.requests.clear()
    capsys.readouterr()
    run(root, "--checkpoint")
    assert hub.requests == []
    assert capsys.readouterr().out.count("is already complete") == 2
    assert len(download_data.asked) == 4  # type: ignore[attr-defined]


def test_a_wrong_environment_is_named(hub: FakeHub, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:port")
    monkeypatch.delenv("https_proxy", raising=False)
    with pytest.raises(InputError, match=r"^HTTPS_PROXY http://127\.0\.0\.1:port: not the address of a proxy"):
        run(root)
    assert not hub.requests


def test_what_is_missing_there(
    hub: FakeHub, root: Path, charades: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    files = {name: content for name, content in charades.items() if name not in OPTIONAL}
    hosted = hub.host(HUB_REPOSITORY, under("charades_dataset", files))
    with pytest.raises(InputError, match=rf"{HUB_REPOSITORY} at main: lacks charades\.ckpt"):
        run(root, "--checkpoint")
    assert hub.bodies() == []
    run(root)
    assert held(root) == files
    assert "charades_id_action_dict.json" in capsys.readouterr().out
    hosted.files = {name: content for name, content in hosted.files.items() if "val" not in name and "hdf5" not in name}
    names = r"charades_clip_i3d_numpy\.hdf5; roberta_charades_query_feat\.hdf5; charadesval\.caption\.txt"
    with pytest.raises(InputError, match=f"lacks {names}"):
        run(root, "--revision", "main", "--root_path", str(root / "elsewhere"))
    assert not (root / "elsewhere").exists()


def test_a_name_that_several_files_have(hub: FakeHub, root: Path, charades: dict[str, bytes]) -> None:
    files = under("charades_dataset", charades)
    hosted = hub.host(HUB_REPOSITORY, files | {f"old/{TRAIN}": b"another caption file"})
    run(root)  # the folder's own comes first
    assert held(root) == charades
    hosted.files[f"charades_dataset/copy/{TRAIN}"] = charades[TRAIN]
    run(root / "same")
    assert held(root / "same") == charades
    hosted.files[f"charades_dataset/copy/{TRAIN}"] = b"another caption file"
    with pytest.raises(InputError, match=rf"charadestrain\.caption\.txt is ambiguous: charades_dataset/{TRAIN}; "):
        run(root / "other")


@pytest.mark.parametrize(("pack", "suffix"), [(zipped, ".zip"), (tarred, ".tar.gz")])
def test_archives_are_unpacked(
    hub: FakeHub,
    root: Path,
    charades: dict[str, bytes],
    pack: Callable[[Mapping[str, bytes]], bytes],
    suffix: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plain = {name: content for name, content in charades.items() if name.startswith("Feature")}
    packed = {name: content for name, content in charades.items() if name not in plain}
    inside = under("charades_dataset/deep", packed) | {"charades_dataset/README": b"read me"}
    hub.host(HUB_REPOSITORY, under("charades_dataset", plain) | {f"charades_dataset/TextData{suffix}": pack(inside)})
    run(root)
    assert held(root) == charades
    assert "charades_dataset/README" in capsys.readouterr().out
    assert not list((root / "dataset").rglob("*TextData?*"))  # the archive is deleted
    hub.requests.clear()
    run(root)
    assert hub.requests == []


def test_an_interrupted_unpacking_is_taken_up(
    hub: FakeHub, root: Path, charades: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.host(HUB_REPOSITORY, {"charades_dataset.zip": zipped(charades)})
    names = list(charades)
    copy = shutil.copyfileobj

    def interrupted(source: io.BufferedIOBase, target: io.BufferedIOBase, length: int) -> None:
        if len(held(root)) == 2:
            target.write(source.read(10))
            raise KeyboardInterrupt
        copy(source, target, length)

    monkeypatch.setattr(shutil, "copyfileobj", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(root)
    assert held(root) == {name: charades[name] for name in names[:2]}
    before = {name: (root / "dataset/charades_i3d" / name).stat().st_mtime_ns for name in names[:2]}
    monkeypatch.setattr(shutil, "copyfileobj", copy)
    hub.requests.clear()
    run(root)
    assert hub.bodies() == []
    assert held(root) == charades
    assert {name: (root / "dataset/charades_i3d" / name).stat().st_mtime_ns for name in before} == before


def test_hostile_and_damaged_archives(
    hub: FakeHub, root: Path, charades: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = zipped(charades)
    flipped = bytearray(whole)
    flipped[whole.index(b"charades_clip_i3d_numpy.hdf5") + 100] ^= 0xFF
    rest = {name: content for name, content in charades.items() if name != TRAIN}
    cases = [
        (".zip", zipped(charades | {"../outside": b"x"}), "unsafe path, it leaves its folder: '../outside'"),
        (".tar.gz", tarred(charades | {"/outside": b"x"}), "unsafe path, it leaves its folder: '/outside'"),
        (".zip", zipped(rest, {TRAIN: "/etc/passwd"}), f"{TRAIN} is a link"),
        (".tar.gz", tarred(rest, {TRAIN: "/etc/passwd"}), f"{TRAIN} is a link"),
        (".zip", zipped(charades | {f"copy/{TRAIN}": b"x"}), "two files named charadestrain.caption.txt"),
        (".zip", zipped(rest), "lacks charadestrain.caption.txt"),
        (".zip", bytes(flipped), "cannot be unpacked"),
        (".zip", b"no archive", "cannot be unpacked"),
        (".tar.gz", tarred(charades)[:-200], "cannot be unpacked"),
        (".tar", b"x" * 2000, "cannot be unpacked"),
    ]
    for number, (suffix, content, expected) in enumerate(cases):
        hub.host(HUB_REPOSITORY, {f"charades_dataset{suffix}": content})
        with pytest.raises(InputError) as caught:
            run(root / str(number))
        assert expected in str(caught.value)
        assert set(held(root / str(number)).items()) <= set(charades.items())
    assert not list(root.rglob("outside"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: DiskUsage(0, 0, (64 << 20) + 20_000))
    hub.host(HUB_REPOSITORY, {"charades_dataset.zip": zipped(dict.fromkeys(charades, bytes(30_000)))})
    with pytest.raises(InputError, match="not enough disk space"):
        run(root / "bomb")
    assert held(root / "bomb") == {}


def test_nothing_of_the_users_is_overwritten(hub: FakeHub, root: Path, charades: dict[str, bytes]) -> None:
    own = root / "dataset" / "charades_i3d" / TRAIN
    own.parent.mkdir(parents=True)
    own.write_bytes(b"my own captions")
    for files in (under("charades_dataset", charades), {"charades_dataset.zip": zipped(charades)}):
        hub.host(HUB_REPOSITORY, files)
        with pytest.raises(InputError, match=f"{own}: is not the file of {HUB_REPOSITORY}"):
            run(root)
    assert own.read_bytes() == b"my own captions"


def test_names_that_leave_the_folder_are_refused(hub: FakeHub, root: Path, charades: dict[str, bytes]) -> None:
    hosted = hub.host(HUB_REPOSITORY, under("charades_dataset", charades))
    hosted.listed = [*hosted.files, f"charades_dataset/../../{TRAIN}"]
    with pytest.raises(InputError, match="unsafe paths, they leave their folder"):
        run(root)
    assert list(root.iterdir()) == []


def command(root: Path, hub: FakeHub, *arguments: str) -> "subprocess.Popen[str]":
    """The command, as a process of its own."""
    environment = {"PATH": os.environ["PATH"], "HF_HOME": str(root / "home"), "HOME": str(root / "home")}
    environment |= {"HF_ENDPOINT": hub.url, "NO_PROXY": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, str(REPOSITORY / "utils" / "download_data.py"), "charades", *arguments]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(words, cwd=root, env=environment, text=True, **streams)  # type: ignore[call-overload]


def test_a_killed_process_loses_little(hub: FakeHub, root: Path, charades: dict[str, bytes]) -> None:
    arrived, lost = 200_000, 16_000
    large = np.random.default_rng(0).bytes(2 * arrived)
    hosted = hub.host(HUB_REPOSITORY, under("charades_dataset", charades | {FEATURES: large}))
    hosted.faults[f"charades_dataset/{FEATURES}"] = [Fault(stall=arrived)]
    process = command(root, hub)
    folder = (root / "dataset" / "charades_i3d" / FEATURES).parent
    deadline = time.monotonic() + 30
    while sum(path.stat().st_size for path in folder.glob(".*.incomplete")) < arrived - lost:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        process.stdout.readline() if process.stdout and not folder.exists() else os.sched_yield()
    process.kill()
    process.communicate()
    kept = sum(path.stat().st_size for path in folder.glob(".*.incomplete"))
    hub.requests.clear()
    run(root)
    assert hub.ranges(f"charades_dataset/{FEATURES}") == [f"bytes={kept}-"]
    assert held(root) == charades | {FEATURES: large}


def test_a_full_disk_keeps_what_was_written(hub: FakeHub, root: Path, charades: dict[str, bytes]) -> None:
    limit = 100_000
    large = np.random.default_rng(0).bytes(3 * limit)
    hub.host(HUB_REPOSITORY, under("charades_dataset", charades | {FEATURES: large}))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(InputError, match=rf"{FEATURES}: File too large; the partial download is kept"):
            run(root)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert FEATURES not in held(root)
    hub.requests.clear()
    run(root)
    assert hub.ranges(f"charades_dataset/{FEATURES}") == [f"bytes={limit}-"]
    assert held(root) == charades | {FEATURES: large}


def test_the_command(hub: FakeHub, tmp_path: Path, charades: dict[str, bytes]) -> None:
    hosted = hub.host(HUB_REPOSITORY, under("charades_dataset", charades) | {"charades.ckpt": b"weights"})
    process = command(tmp_path, hub, "--checkpoint")
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert held(tmp_path) == charades
    assert (tmp_path / "checkpoints" / "charades.ckpt").read_bytes() == b"weights"
    assert len(printed.splitlines()) > len(charades)
    # What is fetched is checked: a video without features is found.
    hosted.files[f"charades_dataset/{TRAIN}"] += b"EEEEE#enc#0 a person without features.\n"
    hosted.commit = "d" * 40
    with pytest.raises(InputError, match="EEEEE"):
        run(tmp_path, "--revision", "d" * 40)
