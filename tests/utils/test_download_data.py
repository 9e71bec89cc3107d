"""Downloading the released data and checkpoints from a hub on the loopback."""

import io
import json
import os
import resource
import shutil
import stat
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import h5py
import numpy as np
import pytest

from method.runtime.errors import InputError
from tests.helpers.paths import REPOSITORY
from tests.utils.fake_hub import DiskUsage, FakeHub, Fault, visible_files
from utils import download_data
from utils.download_data import HUB_REPOSITORY, data_files, main

FEATURES = "FeatureData/charades_clip_i3d_numpy.hdf5"
TRAIN = "TextData/charadestrain.caption.txt"
VOCABULARIES = tuple(
    f"TextData/charades_{of}_{kind}_dict.json" for of in ("id", "total") for kind in ("action", "object")
)

Files = dict[str, bytes]


@pytest.fixture(scope="module")
def charades() -> Files:
    """A dataset of four videos: name below its folder -> content."""
    random = np.random.default_rng(0)
    videos = ("AAAAA", "BBBBB", "CCCCC", "DDDDD")
    captions = [f"{video}#enc#{i}" for video in videos for i in range(2)]

    def hdf5(arrays: dict[str, tuple[int, int]]) -> bytes:
        buffer = io.BytesIO()
        with h5py.File(buffer, "w") as file:
            for name, shape in arrays.items():
                file[name] = random.normal(size=shape).astype("float32")
        return buffer.getvalue()

    lines = [f"{caption} person opens the door.\n" for caption in captions]
    words: list[object] = [dict.fromkeys(captions, word) for word in ({"opens": "VBZ"}, {"door": "NN"})]
    words += [{"VBZ": ["opens", "closes"]}, {"NN": ["door", "book"]}]
    return {
        FEATURES: hdf5({f"{v}/i3d_feat": (7, 1024) for v in videos} | {f"{v}/clip_feat": (5, 512) for v in videos}),
        TRAIN: "".join(lines[:4]).encode(),
        "TextData/charadesval.caption.txt": "".join(lines[4:]).encode(),
        "TextData/roberta_charades_query_feat.hdf5": hdf5(dict.fromkeys(captions, (6, 1024))),
        **{name: json.dumps(content).encode() for name, content in zip(VOCABULARIES, words, strict=True)},
    }


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Arguments with which the dataset would have been checked."""
    arguments: list[list[str]] = []
    monkeypatch.setattr(download_data, "check_dataset", arguments.append)
    return arguments


@pytest.fixture
def root(tmp_path: Path, checks: list[list[str]]) -> Path:
    """An empty folder to download to; the dataset is not checked afterwards."""
    return tmp_path


def held(root: Path) -> Files:
    return visible_files(root / "dataset" / "charades_i3d")


def under(folder: str, files: Mapping[str, bytes]) -> Files:
    return {f"{folder}/{name}": content for name, content in files.items()}


def run(root: Path, *arguments: str) -> None:
    main(["charades", "--root_path", str(root), *arguments])


def refused(root: Path, message: str, *arguments: str) -> None:
    with pytest.raises(InputError) as caught:
        run(root, *arguments)
    assert message in str(caught.value)


def zipped(files: Mapping[str, bytes], link: str = "") -> bytes:
    """A zip archive; `link` is the name of a symbolic link in it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        if link:
            entry = zipfile.ZipInfo(link)
            entry.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(entry, "/etc/passwd")
    return buffer.getvalue()


def tarred(files: Mapping[str, bytes], link: str = "") -> bytes:
    """The same as a compressed tar archive."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        if link:
            entry = tarfile.TarInfo(link)
            entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(entry)
    return buffer.getvalue()


@pytest.mark.parametrize(("dataset", "prefix"), [("charades", "charades"), ("activitynet", "anet"), ("tvr", "tvr")])
def test_every_dataset_is_stored_where_its_launcher_looks(hub: FakeHub, root: Path, dataset: str, prefix: str) -> None:
    names = [f"FeatureData/{prefix}_clip_i3d_numpy.hdf5", f"TextData/roberta_{dataset}_query_feat.hdf5"]
    names += [f"TextData/{dataset}{split}.caption.txt" for split in ("train", "val")]
    names += [name.replace("charades", prefix) for name in VOCABULARIES]
    assert set(data_files(dataset)[1]) == set(names)
    files = {name: name.encode() for name in names}
    hub.host(HUB_REPOSITORY, under(f"{prefix}_dataset", files) | {f"{prefix}.ckpt": b"weights"})
    main([dataset, "--root_path", str(root), "--checkpoint"])
    assert visible_files(root / "dataset" / f"{dataset}_i3d") == files
    assert (root / "checkpoints" / f"{prefix}.ckpt").read_bytes() == b"weights"


@pytest.mark.parametrize("layout", ["nested", "flat"])
def test_files_are_found_at_any_depth_and_others_are_skipped(
    hub: FakeHub, root: Path, charades: Files, checks: list[list[str]], layout: str, capsys: pytest.CaptureFixture[str]
) -> None:
    files = charades if layout == "nested" else {Path(name).name: content for name, content in charades.items()}
    where = "release/v1/charades_dataset/data" if layout == "nested" else "charades_dataset"
    others = (f"{where}/notes.md", f"{where}/last.ckpt", "anet_dataset/anet_clip_i3d_numpy.hdf5", "charades.ckpt")
    hub.host(HUB_REPOSITORY, under(where, files) | dict.fromkeys(others, b"x"))
    run(root)
    assert held(root) == charades
    assert sorted(hub.bodies()) == sorted(under(where, files))
    assert not (root / "checkpoints").exists()
    assert checks == [["charades", "--root_path", str(root)]]
    printed = capsys.readouterr().out
    assert [printed.count(name) for name in ("notes.md", "anet", "ckpt")] == [1, 0, 0]


def test_a_complete_download_sends_no_request(
    hub: FakeHub, root: Path, charades: Files, checks: list[list[str]], capsys: pytest.CaptureFixture[str]
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
    assert len(checks) == 4


def test_what_the_repository_lacks(
    hub: FakeHub, root: Path, charades: Files, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {name: content for name, content in charades.items() if name not in VOCABULARIES}
    hosted = hub.host(HUB_REPOSITORY, under("charades_dataset", files))
    refused(root, f"{HUB_REPOSITORY} at main: lacks charades.ckpt", "--checkpoint")
    assert hub.bodies() == []
    run(root)
    assert held(root) == files
    assert "charades_id_action_dict.json" in capsys.readouterr().out
    hosted.files = {name: content for name, content in hosted.files.items() if "val" not in name and "hdf5" not in name}
    names = "charades_clip_i3d_numpy.hdf5; roberta_charades_query_feat.hdf5; charadesval.caption.txt"
    refused(root / "elsewhere", f"lacks {names}")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:port")
    monkeypatch.delenv("https_proxy", raising=False)
    hub.requests.clear()
    refused(root / "elsewhere", "HTTPS_PROXY http://127.0.0.1:port: not the address of a proxy")
    assert not hub.requests
    assert not (root / "elsewhere").exists()


def test_a_name_that_several_files_have(hub: FakeHub, root: Path, charades: Files) -> None:
    files = under("charades_dataset", charades)
    hosted = hub.host(HUB_REPOSITORY, files | {f"old/{TRAIN}": b"another caption file"})
    run(root)  # the folder's own comes first
    assert held(root) == charades
    hosted.files[f"charades_dataset/copy/{TRAIN}"] = charades[TRAIN]
    run(root / "same")
    assert held(root / "same") == charades
    hosted.files[f"charades_dataset/copy/{TRAIN}"] = b"another caption file"
    refused(root / "other", f"charadestrain.caption.txt is ambiguous: charades_dataset/{TRAIN}; ")


@pytest.mark.parametrize(("pack", "suffix"), [(zipped, ".zip"), (tarred, ".tar.gz")])
def test_archives_are_unpacked(
    hub: FakeHub, root: Path, charades: Files, pack: Callable[[Files], bytes], suffix: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
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


def test_interrupted_unpacking_is_continued(
    hub: FakeHub, root: Path, charades: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.host(HUB_REPOSITORY, {"charades_dataset.zip": zipped(charades)})
    copy = shutil.copyfileobj

    def interrupted(source: io.BufferedIOBase, target: io.BufferedIOBase, length: int) -> None:
        if len(held(root)) == 2:
            target.write(source.read(10))
            raise KeyboardInterrupt
        copy(source, target, length)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(root)
    first = list(charades)[:2]
    assert held(root) == {name: charades[name] for name in first}
    paths = [root / "dataset/charades_i3d" / name for name in first]
    before = [path.stat().st_mtime_ns for path in paths]
    hub.requests.clear()
    run(root)
    assert hub.bodies() == []
    assert held(root) == charades
    assert [path.stat().st_mtime_ns for path in paths] == before


def test_malicious_and_damaged_archives(
    hub: FakeHub, root: Path, charades: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = zipped(charades)
    flipped = bytearray(whole)
    flipped[whole.index(b"charades_clip_i3d_numpy.hdf5") + 100] ^= 0xFF
    rest = {name: content for name, content in charades.items() if name != TRAIN}
    for number, (suffix, content, message) in enumerate([
        (".zip", zipped(charades | {"../outside": b"x"}), "unsafe path, it leaves its folder: '../outside'"),
        (".tar.gz", tarred(charades | {"/outside": b"x"}), "unsafe path, it leaves its folder: '/outside'"),
        (".zip", zipped(rest, link=TRAIN), f"{TRAIN} is a link"),
        (".tar.gz", tarred(rest, link=TRAIN), f"{TRAIN} is a link"),
        (".zip", zipped(charades | {f"copy/{TRAIN}": b"x"}), "two files named charadestrain.caption.txt"),
        (".zip", zipped(rest), "lacks charadestrain.caption.txt"),
        (".zip", bytes(flipped), "cannot be unpacked"),
        (".zip", b"no archive", "cannot be unpacked"),
        (".tar.gz", tarred(charades)[:-200], "cannot be unpacked"),
        (".tar", b"x" * 2000, "cannot be unpacked"),
    ]):  # fmt: skip
        hub.host(HUB_REPOSITORY, {f"charades_dataset{suffix}": content})
        refused(root / str(number), message)
        assert set(held(root / str(number)).items()) <= set(charades.items())
    assert not list(root.rglob("outside"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: DiskUsage(0, 0, (64 << 20) + 20_000))
    hub.host(HUB_REPOSITORY, {"charades_dataset.zip": zipped(dict.fromkeys(charades, bytes(30_000)))})
    refused(root / "bomb", "not enough disk space")
    assert held(root / "bomb") == {}


def test_no_file_of_the_user_is_overwritten(hub: FakeHub, root: Path, charades: Files) -> None:
    own = root / "dataset" / "charades_i3d" / TRAIN
    own.parent.mkdir(parents=True)
    own.write_bytes(b"my own captions")
    for files in (under("charades_dataset", charades), {"charades_dataset.zip": zipped(charades)}):
        hub.host(HUB_REPOSITORY, files)
        refused(root, f"{own}: is not the file of {HUB_REPOSITORY}")
    assert own.read_bytes() == b"my own captions"


def test_a_killed_process_loses_little(hub: FakeHub, root: Path, charades: Files) -> None:
    arrived, lost = 200_000, 16_000
    large = np.random.default_rng(0).bytes(2 * arrived)
    hosted = hub.host(HUB_REPOSITORY, under("charades_dataset", charades | {FEATURES: large}))
    hosted.faults[f"charades_dataset/{FEATURES}"] = [Fault(stall=arrived)]
    environment = {"PATH": os.environ["PATH"], "HOME": str(root), "HF_ENDPOINT": hub.url, "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, str(REPOSITORY / "utils" / "download_data.py"), "charades"]
    folder = (root / "dataset" / "charades_i3d" / FEATURES).parent
    deadline = time.monotonic() + 60
    with subprocess.Popen(command, cwd=root, env=environment) as process:
        while sum(path.stat().st_size for path in folder.glob(".*.incomplete")) < arrived - lost:
            assert process.poll() is None
            assert time.monotonic() < deadline
            threading.Event().wait(0.01)
        process.kill()
    (partial,) = folder.glob(".*.incomplete")
    kept = partial.stat().st_size
    hub.requests.clear()
    run(root)
    assert hub.ranges(f"charades_dataset/{FEATURES}") == [f"bytes={kept}-"]
    assert held(root) == charades | {FEATURES: large}


def test_a_full_disk_keeps_what_was_written(hub: FakeHub, root: Path, charades: Files) -> None:
    limit = 100_000
    large = np.random.default_rng(0).bytes(3 * limit)
    hub.host(HUB_REPOSITORY, under("charades_dataset", charades | {FEATURES: large}))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        refused(root, f"{FEATURES}: File too large; the partial download is kept")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert FEATURES not in held(root)
    hub.requests.clear()
    run(root)
    assert hub.ranges(f"charades_dataset/{FEATURES}") == [f"bytes={limit}-"]
    assert held(root) == charades | {FEATURES: large}


def test_what_is_downloaded_is_checked(hub: FakeHub, tmp_path: Path, charades: Files) -> None:
    hosted = hub.host(HUB_REPOSITORY, under("charades_dataset", charades))
    run(tmp_path)
    hosted.files[f"charades_dataset/{TRAIN}"] += b"EEEEE#enc#0 a person without features.\n"
    hosted.commit = "d" * 40
    refused(tmp_path, "EEEEE", "--revision", "d" * 40)
