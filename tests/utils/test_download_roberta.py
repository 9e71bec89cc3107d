"""Downloading the text encoder from a hub on the loopback: selection, resuming, verification, refusals."""

import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import close_session  # type: ignore[attr-defined]

from method.runtime.errors import InputError
from tests.helpers.hub_environment import clear_network
from tests.helpers.paths import REPOSITORY
from tests.helpers.poor_disk import refuse_all
from tests.helpers.tiny_text_encoder import WIDTH, make_text_encoder
from tests.utils.fake_hub import DiskUsage, FakeHub, Fault, Hosted, visible_files
from utils import download_roberta
from utils.download_roberta import MODEL, PINNED, encode_once, main, select_files

WEIGHTS = "model.safetensors"
OTHER_FORMATS = ("pytorch_model.bin", "flax_model.msgpack", "tf_model.h5", "rust_model.ot", "onnx/model.onnx")


@dataclass
class Encoder:
    """A hub with a small RoBERTa under the real one's name and commit, and the folder it is downloaded to."""

    hub: FakeHub
    folder: Path
    files: dict[str, bytes]
    hosted: Hosted

    def fail(self, *faults: Fault) -> None:
        self.hosted.faults[WEIGHTS] = list(faults)

    def refused(self, message: str, *arguments: str) -> None:
        with pytest.raises(InputError) as caught:
            main(list(arguments))
        assert message in str(caught.value)

    def download(self) -> list[str]:
        """Complete the download; returns the files whose bodies were requested."""
        self.hub.requests.clear()
        main([])
        assert visible_files(self.folder) == self.files
        return self.hub.bodies()

    def interrupt(self) -> Path:
        """Break a download after 4096 stored bytes of the weights; returns the partial file."""
        self.fail(Fault(cut=5000), Fault(status=503))
        self.refused(f"{MODEL}: HTTP status 503 from {self.hub.url}")
        assert WEIGHTS not in visible_files(self.folder)
        (partial,) = self.folder.glob(f".{WEIGHTS}.*.incomplete")
        assert partial.read_bytes() == self.files[WEIGHTS][:4096]
        return partial

    @property
    def record(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / ".download.json").read_text()))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return visible_files(make_text_encoder(tmp_path_factory.mktemp("made") / "encoder", ["person opens the door."]))


@pytest.fixture
def encoder(hub: FakeHub, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Encoder:
    """In a working directory of its own; the encoder is not loaded after the download, which takes long."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(download_roberta, "encode_once", lambda folder: (8, WIDTH))
    extra = dict.fromkeys((*OTHER_FORMATS, "README.md", "dict.txt"), b"not to be downloaded")
    return Encoder(
        hub, tmp_path / "checkpoints/roberta-large", files, hub.host(MODEL, files | extra, commit=PINNED[MODEL])
    )


def test_only_the_needed_files_of_the_pinned_commit_are_downloaded(encoder: Encoder) -> None:
    assert sorted(encoder.download()) == sorted(encoder.files)
    assert {request.revision for request in encoder.hub.requests if request.kind != "api"} == {PINNED[MODEL]}
    assert not list(encoder.folder.glob("*.incomplete")) + list(encoder.folder.glob(".*.part"))
    record = encoder.record
    assert (record["repository"], record["commit"], record["complete"]) == (MODEL, PINNED[MODEL], True)
    sizes = {name: len(content) for name, content in encoder.files.items()}
    assert {name: entry["size"] for name, entry in record["files"].items()} == sizes


def test_a_complete_download_sends_no_request(encoder: Encoder) -> None:
    encoder.download()
    for path in encoder.folder.iterdir():
        os.utime(path)  # as after a copy: the contents have to be compared
    assert encoder.download() == []
    assert encoder.hub.requests == []


@pytest.mark.parametrize("damage", ["deleted", "truncated", "changed"])
def test_only_a_damaged_file_is_downloaded_again(encoder: Encoder, damage: str) -> None:
    encoder.download()
    path, content = encoder.folder / WEIGHTS, bytearray(encoder.files[WEIGHTS])
    if damage == "deleted":
        path.unlink()
    else:
        content[-1] ^= 1
        path.write_bytes(content[: len(content) // 2] if damage == "truncated" else content)
    assert encoder.download() == [WEIGHTS]


def test_broken_connections_are_resumed(encoder: Encoder) -> None:
    encoder.fail(Fault(cut=5000), Fault(cut=3000))
    encoder.download()
    assert encoder.hub.ranges(WEIGHTS) == [None, "bytes=4096-", "bytes=6144-"]


def test_a_server_without_ranges_starts_over(encoder: Encoder) -> None:
    encoder.fail(Fault(cut=5000), Fault(ranges=False))
    encoder.download()


def test_an_interrupted_download_is_resumed_by_the_next_run(encoder: Encoder) -> None:
    partial = encoder.interrupt()
    with partial.open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        encoder.refused("another process is downloading it")
    complete = set(visible_files(encoder.folder))
    assert complete.isdisjoint(encoder.download())
    assert encoder.hub.ranges(WEIGHTS) == ["bytes=4096-"]


def test_a_partial_file_that_is_too_long_is_dropped(encoder: Encoder) -> None:
    encoder.interrupt().write_bytes(b"x" * (len(encoder.files[WEIGHTS]) + 1))
    encoder.download()


@pytest.mark.parametrize(("file", "wrong", "message"), [
    (WEIGHTS, lambda content: Fault(served=content[:-9]), "does not send the {size} bytes"),
    (WEIGHTS, lambda content: Fault(served=content + b"x"), "does not send the {size} bytes"),
    (WEIGHTS, lambda content: Fault(served=content[:-1] + bytes([content[-1] ^ 1])), "corrupt download"),
    (WEIGHTS, lambda content: Fault(cut=5000, ranges=False), "the connection keeps breaking"),
    ("config.json", lambda content: Fault(served=content[:-1] + b" "), "config.json: corrupt download"),  # by git hash
], ids=["shorter", "longer", "other", "always broken", "small"])  # fmt: skip
def test_wrong_content_is_never_stored(
    encoder: Encoder, file: str, wrong: Callable[[bytes], Fault], message: str
) -> None:
    content = encoder.files[file]
    encoder.hosted.faults[file] = [wrong(content)] * 1000
    encoder.refused(message.format(size=len(content)))
    assert file not in visible_files(encoder.folder)
    encoder.hosted.faults.clear()
    encoder.download()


def test_what_the_hub_refuses_is_one_line(encoder: Encoder) -> None:
    hub, hosted = encoder.hub, encoder.hosted
    hub.host("some/gated", encoder.files).gated = True
    for arguments, message in {
        ("--model", "no/such"): f"no/such: no such model on {hub.url}, or it is private",
        ("--revision", "v9"): f"{MODEL} on {hub.url}: no such model, or no revision v9 of it",
        ("--model", "some/gated"): f"some/gated: gated; accept its conditions at {hub.url}/some/gated",
        ("--model", "a/b/c"): "a/b/c: not a repository name",
        ("--modle", "x"): "unrecognized arguments",
    }.items():
        encoder.refused(message, *arguments)
    for hub.status in (404, 403, 429, 500):
        encoder.refused("no revision" if hub.status == 404 else f"HTTP status {hub.status}")
    hub.status = None
    for name in ("../config.json", "/etc/passwd", "a/../../b", "a//b", "..\\b", "line\nbreak"):
        hosted.listed = [*encoder.files, name]
        encoder.refused("unsafe paths, they leave their folder")
    hosted.listed = list(hosted.files)
    del hosted.files["merges.txt"]
    encoder.refused(f"{MODEL} on {hub.url}: no file merges.txt at {PINNED[MODEL]}")
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("variables", [
    dict.fromkeys(("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT", "HF_ENDPOINT", "SSL_CERT_FILE", "ALL_PROXY"), ""),
    {"HF_HUB_ETAG_TIMEOUT": " 5 ", "HF_HUB_DOWNLOAD_TIMEOUT": "0"},
    {"REQUESTS_CA_BUNDLE": "/nonexistent", "CURL_CA_BUNDLE": "/nonexistent"},  # of another client
    {"ALL_PROXY": "nonsense://x:y", "NO_PROXY": "localhost,*"},
    {"HTTPS_PROXY": "127.0.0.1:9", "all_proxy": "http://[::1]:9", "NO_PROXY": "127.0.0.1"},
], ids=lambda value: " ".join(value)[:30])  # fmt: skip
def test_unusual_environments_that_work(
    encoder: Encoder, variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clear_network(monkeypatch)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    close_session()  # the client reads the environment when it is made
    encoder.download()
    close_session()


def test_connections_that_fail_are_explained(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    clear_network(monkeypatch)
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("waits for a hub that is not there"))
    monkeypatch.setattr(constants, "ENDPOINT", "huggingface.co")
    encoder.refused("HF_ENDPOINT huggingface.co: expected a URL")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    encoder.refused(f"{url}: connection failed")
    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        encoder.refused("HF_HUB_OFFLINE is set")
    monkeypatch.setattr(constants, "ENDPOINT", "http://hub.invalid")
    monkeypatch.setenv("HTTP_PROXY", "http://me:secret@127.0.0.1:9")
    close_session()
    with pytest.raises(InputError, match=r"^http://hub\.invalid: .* HTTP_PROXY http://\*\*\*@127") as caught:
        main([])
    assert "secret" not in str(caught.value)
    close_session()


def test_a_server_that_is_no_hub(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.utils.fake_hub.json.dumps", lambda value: "<html>Please log in</html>")
    encoder.refused("expected a Hugging Face hub")


def test_an_invalid_token_is_not_printed(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_sécret")
    with pytest.raises(InputError, match=r"^HF_TOKEN: not a valid token$"):
        main([])


def test_the_token_is_sent_to_the_hub_only_and_a_branch_is_resolved_to_its_commit(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    encoder.hub.host("some/encoder", encoder.files, commit="a" * 40)
    main(["--out", str(encoder.folder), "--model", "some/encoder"])
    assert (encoder.record["revision"], encoder.record["commit"]) == ("main", "a" * 40)
    assert {request.revision for request in encoder.hub.requests if request.kind != "api"} == {"a" * 40}
    sent = {(request.kind, request.authorization) for request in encoder.hub.requests}
    assert sent == {("api", "Bearer hf_secret"), ("hub", "Bearer hf_secret"), ("cdn", None)}
    encoder.refused(f"holds files of some/encoder, not of {MODEL}")


def test_roberta_base_is_pinned_and_has_a_folder_of_its_own(encoder: Encoder) -> None:
    base = "FacebookAI/roberta-base"
    encoder.hub.host(base, encoder.files, commit=PINNED[base])
    main(["--model", base])
    assert visible_files(encoder.folder.with_name("roberta-base")) == encoder.files
    assert {request.revision for request in encoder.hub.requests if request.kind != "api"} == {PINNED[base]}
    assert not encoder.folder.exists()


def test_another_commit_than_requested_is_reported(encoder: Encoder, caplog: pytest.LogCaptureFixture) -> None:
    encoder.hosted.commit, encoder.hosted.branch = "a" * 40, PINNED[MODEL]
    encoder.download()
    assert f"requested commit {PINNED[MODEL]}, but {encoder.hub.url} returned {'a' * 40}" in caplog.text
    assert encoder.record["commit"] == "a" * 40


def test_a_new_commit_downloads_what_changed(encoder: Encoder) -> None:
    encoder.download()
    encoder.files = encoder.files | {"config.json": encoder.files["config.json"] + b"\n"}
    encoder.hub.host(MODEL, encoder.files, commit="b" * 40)
    encoder.hub.requests.clear()
    main(["--revision", "main"])
    assert encoder.hub.bodies() == ["config.json"]
    assert visible_files(encoder.folder) == encoder.files


def test_a_damaged_record_downloads_nothing(encoder: Encoder) -> None:
    encoder.download()
    (encoder.folder / ".download.json").write_text('{"files": 1')
    assert encoder.download() == []
    assert encoder.record["complete"] is True


def test_disk_space_is_checked_first_and_counts_what_is_there(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    margin, total = 64 << 20, sum(map(len, encoder.files.values()))
    free = DiskUsage(0, 0, margin + total - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    encoder.refused(f"{encoder.folder}: not enough disk space")
    assert encoder.hub.bodies() == []
    free = DiskUsage(0, 0, margin + total)
    encoder.interrupt()
    left = total - 4096 - sum(map(len, visible_files(encoder.folder).values()))
    free = DiskUsage(0, 0, margin + left - 1)
    encoder.refused("not enough disk space")
    free = DiskUsage(0, 0, margin + left)
    encoder.download()


def test_folders_that_cannot_be_written_to(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("file").touch()
    encoder.refused("file/encoder: cannot create this folder (Not a directory)", "--out", "file/encoder")
    assert encoder.hub.bodies() == []
    refuse_all(monkeypatch)
    encoder.download()


def test_a_file_of_the_user_is_not_overwritten(encoder: Encoder) -> None:
    encoder.folder.mkdir(parents=True)
    own = encoder.folder / WEIGHTS
    own.write_bytes(b"my own weights")
    (encoder.folder / "config.json").write_bytes(encoder.files["config.json"])
    encoder.refused(f"{WEIGHTS}: is not the file of {MODEL}; move it away")
    assert own.read_bytes() == b"my own weights"
    assert encoder.hub.bodies() == []
    own.unlink()
    assert "config.json" not in encoder.download()  # the same file, whoever put it there


def test_select_files() -> None:
    basics = ["config.json", "tokenizer.json", "tokenizer_config.json", "sub/vocab.txt", "README.md"]
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    kept = basics[:3]
    assert select_files("m", [*basics, WEIGHTS, *shards, f"{WEIGHTS}.index.json"]) == sorted([*kept, WEIGHTS])
    sharded = [*kept, *shards, f"{WEIGHTS}.index.json"]
    assert select_files("m", [*basics, *sharded, "pytorch_model.bin"]) == sorted(sharded)
    bert = ["config.json", "vocab.txt", WEIGHTS]
    assert select_files("m", [*bert, "vocab.json"]) == ["config.json", WEIGHTS, "vocab.txt"]
    refused = {
        "no config.json": [WEIGHTS, "tokenizer.json"],
        "no tokenizer, expected": ["config.json", "vocab.json", WEIGHTS],
        "no model.safetensors;": [*basics, "pytorch_model.bin"],
        "without model-00002-of-00002.safetensors": [*basics, shards[0], f"{WEIGHTS}.index.json"],
    }
    for expected, paths in refused.items():
        with pytest.raises(InputError, match=expected):
            select_files("m", paths)


def test_a_downloaded_encoder_is_loaded_once(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(download_roberta, "encode_once", encode_once)
    encoder.download()
    assert capsys.readouterr().out.splitlines()[-1].endswith(f"tokens of width {WIDTH}")
    config = json.loads(encoder.files["config.json"]) | {"model_type": "unknown"}
    encoder.hosted.files["config.json"] = json.dumps(config).encode()
    encoder.refused(f"{encoder.folder.with_name('other')}: downloaded, but transformers cannot use its config",
        "--out", str(encoder.folder.with_name("other")))  # fmt: skip
    assert json.loads((encoder.folder.with_name("other") / ".download.json").read_text())["complete"] is False


def test_a_timeout_that_breaks_the_import_of_the_client_is_one_line() -> None:
    command = [sys.executable, str(REPOSITORY / "utils" / "download_roberta.py")]
    done = subprocess.run(command, env=os.environ | {"HF_HUB_ETAG_TIMEOUT": "abc"}, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: HF_HUB_ETAG_TIMEOUT 'abc': expected a whole number of seconds")
    assert done.stderr.count("\n") == 1
