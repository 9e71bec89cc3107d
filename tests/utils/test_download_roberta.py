"""The command that fetches the text encoder, against a hub on the loopback."""

import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import close_session  # type: ignore[attr-defined]

from method.runtime.errors import InputError
from tests.helpers.hub_environment import clear_network
from tests.helpers.paths import REPOSITORY
from tests.helpers.poor_disk import refuse_all
from tests.helpers.tiny_text_encoder import WIDTH, make_text_encoder
from tests.utils.fake_hub import FakeHub, Fault
from utils import download_roberta
from utils.download_roberta import MODEL, PINNED, main, select_files

WEIGHTS = "model.safetensors"
OTHER_FRAMEWORKS = ("pytorch_model.bin", "flax_model.msgpack", "tf_model.h5", "rust_model.ot", "onnx/model.onnx")
DiskUsage = namedtuple("DiskUsage", "total used free")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a small RoBERTa."""
    folder = make_text_encoder(tmp_path_factory.mktemp("made") / "encoder", ["person opens the door."])
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, encoder: dict[str, bytes]) -> Iterator[FakeHub]:
    """A hub with the small RoBERTa under the real one's name and commit, and everything that is not to be fetched."""
    with FakeHub() as hub:
        hub.environment(monkeypatch)
        extra = dict.fromkeys((*OTHER_FRAMEWORKS, "README.md", "dict.txt"), b"not to be fetched")
        hub.host(MODEL, encoder | extra, commit=PINNED[MODEL])
        yield hub


@pytest.fixture
def faults(hub: FakeHub) -> dict[str, list[Fault]]:
    """What goes wrong with the encoder's files."""
    return hub.hosted[MODEL].faults


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the encoder is expected, below a working directory of its own; it is not loaded, which takes long."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(download_roberta, "encode_once", lambda folder: (8, WIDTH))
    return tmp_path / "checkpoints" / "roberta-large"


def held(folder: Path) -> dict[str, bytes]:
    """The visible files of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def partial(folder: Path, name: str = WEIGHTS) -> Path:
    """The one partial file of a name."""
    (path,) = folder.glob(f".{name}.*.incomplete")
    return path


def test_only_the_wanted_files_of_the_pinned_commit_are_fetched(
    hub: FakeHub, tmp_path: Path, encoder: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--root_path", str(tmp_path)])
    folder = tmp_path / "checkpoints" / "roberta-large"
    assert sorted(hub.bodies()) == sorted(encoder)
    assert held(folder) == encoder
    assert {request.revision for request in hub.requests if request.kind != "api"} == {PINNED[MODEL]}
    assert not list(folder.glob("*.incomplete")) + list(folder.glob(".*.part"))
    record = json.loads((folder / ".download.json").read_text())
    assert (record["repository"], record["commit"], record["complete"]) == (MODEL, PINNED[MODEL], True)
    assert {name: entry["size"] for name, entry in record["files"].items()} == {k: len(v) for k, v in encoder.items()}
    assert f"width {WIDTH}" in capsys.readouterr().out


def test_another_model_goes_to_a_folder_of_its_own_name_and_roberta_base_is_pinned(
    hub: FakeHub, folder: Path, encoder: dict[str, bytes]
) -> None:
    base = "FacebookAI/roberta-base"
    hub.host(base, encoder, commit=PINNED[base])
    main(["--model", base])
    assert held(folder.with_name("roberta-base")) == encoder
    assert {request.revision for request in hub.requests if request.kind != "api"} == {PINNED[base]}
    assert not folder.exists()


def test_a_complete_download_is_recognised_without_a_request(hub: FakeHub, folder: Path) -> None:
    main([])
    hub.requests.clear()
    for path in folder.iterdir():
        os.utime(path)  # as after a copy: the content must be compared
    main([])
    assert hub.requests == []


@pytest.mark.parametrize("damage", ["deleted", "truncated", "changed"])
def test_a_damaged_file_is_fetched_again_and_no_other(
    hub: FakeHub, folder: Path, encoder: dict[str, bytes], damage: str
) -> None:
    main([])
    hub.requests.clear()
    path, content = folder / WEIGHTS, bytearray(encoder[WEIGHTS])
    if damage == "deleted":
        path.unlink()
    else:
        content[-1] ^= 1
        path.write_bytes(content[: len(content) // 2] if damage == "truncated" else content)
    main([])
    assert hub.bodies() == [WEIGHTS]
    assert held(folder) == encoder


def test_a_broken_connection_is_taken_up_where_it_broke(
    hub: FakeHub, folder: Path, encoder: dict[str, bytes], faults: dict[str, list[Fault]]
) -> None:
    faults[WEIGHTS] = [Fault(cut=5000), Fault(cut=3000)]
    main([])
    assert hub.ranges(WEIGHTS) == [None, "bytes=4096-", f"bytes={4096 + 2048}-"]
    assert held(folder) == encoder


def test_the_next_run_continues_an_interrupted_file(
    hub: FakeHub, folder: Path, encoder: dict[str, bytes], faults: dict[str, list[Fault]]
) -> None:
    faults[WEIGHTS] = [Fault(cut=5000), Fault(status=503)]
    with pytest.raises(InputError, match=f"{MODEL}: HTTP status 503 from {hub.url}"):
        main([])
    assert partial(folder).read_bytes() == encoder[WEIGHTS][:4096]
    assert WEIGHTS not in held(folder)
    there = set(held(folder))
    hub.requests.clear()
    main([])
    assert hub.ranges(WEIGHTS) == ["bytes=4096-"]
    assert there.isdisjoint(hub.bodies())  # what had arrived is not asked for again
    assert held(folder) == encoder


def test_a_server_without_ranges_starts_over(
    hub: FakeHub, folder: Path, encoder: dict[str, bytes], faults: dict[str, list[Fault]]
) -> None:
    faults[WEIGHTS] = [Fault(cut=5000), Fault(ranges=False)]
    main([])
    assert held(folder) == encoder


def test_a_server_that_always_breaks_off_is_given_up(
    hub: FakeHub, folder: Path, faults: dict[str, list[Fault]]
) -> None:
    faults[WEIGHTS] = [Fault(cut=5000, ranges=False)] * 1000
    with pytest.raises(InputError, match="the connection keeps breaking"):
        main([])
    assert len(faults[WEIGHTS]) > 900
    assert WEIGHTS not in held(folder)


@pytest.mark.parametrize("change", ["shorter", "longer", "other"])
def test_content_that_is_not_the_announced_one_is_never_placed(
    hub: FakeHub, folder: Path, encoder: dict[str, bytes], faults: dict[str, list[Fault]], change: str
) -> None:
    content = encoder[WEIGHTS]
    other = content[:-1] + bytes([content[-1] ^ 1])
    served = {"shorter": content[:-9], "longer": content + b"x", "other": other}[change]
    faults[WEIGHTS] = [Fault(served=served)]
    expected = "corrupt download" if change == "other" else f"does not send the {len(content)} bytes"
    with pytest.raises(InputError, match=expected):
        main([])
    assert WEIGHTS not in held(folder)
    main([])
    assert held(folder) == encoder


def test_a_small_file_is_checked_against_its_git_hash(
    hub: FakeHub, folder: Path, encoder: dict[str, bytes], faults: dict[str, list[Fault]]
) -> None:
    faults["config.json"] = [Fault(served=encoder["config.json"][:-1] + b" ")]
    with pytest.raises(InputError, match=r"config\.json: corrupt download"):
        main([])
    assert "config.json" not in held(folder)


def test_a_partial_file_longer_than_the_file_is_dropped(
    hub: FakeHub, folder: Path, encoder: dict[str, bytes], faults: dict[str, list[Fault]]
) -> None:
    faults[WEIGHTS] = [Fault(cut=5000), Fault(status=503)]
    with pytest.raises(InputError):
        main([])
    partial(folder).write_bytes(b"x" * (len(encoder[WEIGHTS]) + 1))
    main([])
    assert held(folder) == encoder


def test_a_file_that_the_listing_promises_and_the_hub_lacks(hub: FakeHub, folder: Path) -> None:
    hosted = hub.hosted[MODEL]
    hosted.listed = list(hosted.files)
    del hosted.files["merges.txt"]
    with pytest.raises(InputError, match=rf"{MODEL} on {hub.url}: no file merges\.txt at {PINNED[MODEL]}"):
        main([])
    assert not folder.exists()


def test_what_the_hub_refuses_is_one_line(hub: FakeHub, folder: Path, encoder: dict[str, bytes]) -> None:
    hub.host("some/gated", encoder).gated = True
    cases = {
        ("--model", "no/such"): f"no/such: no such model on {hub.url}, or it is private",
        ("--revision", "v9"): f"{MODEL} on {hub.url}: no such model, or no revision v9 of it",
        ("--model", "some/gated"): f"some/gated: gated; accept its conditions at {hub.url}/some/gated",
        ("--model", "a/b/c"): "a/b/c: not a repository name",
        ("--modle", "x"): "unrecognized arguments",
    }
    for arguments, expected in cases.items():
        with pytest.raises(InputError) as caught:
            main(list(arguments))
        assert expected in str(caught.value)
    for status in (404, 403, 429, 500):
        hub.status = status
        with pytest.raises(InputError, match="no revision" if status == 404 else f"HTTP status {status}"):
            main([])
    assert not folder.exists()


@pytest.mark.parametrize("variables", [
    dict.fromkeys(("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT", "HF_ENDPOINT", "SSL_CERT_FILE", "ALL_PROXY"), ""),
    {"HF_HUB_ETAG_TIMEOUT": " 5 ", "HF_HUB_DOWNLOAD_TIMEOUT": "0"},
    {"REQUESTS_CA_BUNDLE": "/nonexistent", "CURL_CA_BUNDLE": "/nonexistent"},  # of another client
    {"ALL_PROXY": "nonsense://x:y", "NO_PROXY": "localhost,*"},
    {"HTTPS_PROXY": "127.0.0.1:9", "all_proxy": "http://[::1]:9", "NO_PROXY": "127.0.0.1"},
], ids=lambda value: " ".join(value)[:30])  # fmt: skip
def test_an_environment_that_can_work(
    folder: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], encoder: dict[str, bytes]
) -> None:
    clear_network(monkeypatch)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    close_session()  # the client reads the environment when it is made
    main([])
    close_session()
    assert held(folder) == encoder


def test_a_proxy_that_does_not_answer_is_named(folder: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    clear_network(monkeypatch)
    monkeypatch.setattr(constants, "ENDPOINT", "http://hub.invalid")
    monkeypatch.setenv("HTTP_PROXY", "http://me:secret@127.0.0.1:9")
    close_session()
    with pytest.raises(
        InputError, match=r"^http://hub\.invalid: connection failed .* HTTP_PROXY http://\*\*\*@127"
    ) as caught:
        main([])
    close_session()
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["", "huggingface.co", "ftp://hub", "http://", "http://a b", "http://hub:port"])
def test_an_endpoint_that_is_no_url(url: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", url)
    with pytest.raises(InputError, match=r"HF_ENDPOINT .*: expected a URL"):
        main([])


def test_a_token_is_never_shown(folder: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_sécret")
    with pytest.raises(InputError, match=r"^HF_TOKEN: not a valid token$"):
        main([])


def test_a_hub_that_gives_another_commit(
    folder: Path, hub: FakeHub, encoder: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    hosted = hub.host(MODEL, encoder, commit="a" * 40)
    hosted.branch = PINNED[MODEL]
    main([])
    assert f"requested commit {PINNED[MODEL]}, but {hub.url} returned {'a' * 40}" in caplog.text
    assert json.loads((folder / ".download.json").read_text())["commit"] == "a" * 40


def test_a_server_that_is_no_hub(hub: FakeHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.utils.fake_hub.json.dumps", lambda value: "<html>Please log in</html>")
    with pytest.raises(InputError, match="expected a Hugging Face hub"):
        main([])


def test_no_network_fails_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch, hub: FakeHub) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("waits for a hub that is not there"))
    with pytest.raises(InputError, match=f"{url}: connection failed"):
        main([])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set"):
        main([])


def test_room_is_made_sure_of_before_and_counts_what_is_there(
    hub: FakeHub,
    folder: Path,
    encoder: dict[str, bytes],
    faults: dict[str, list[Fault]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    margin = 64 << 20
    total = sum(len(content) for content in encoder.values())
    free = DiskUsage(0, 0, margin + total - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    with pytest.raises(InputError, match=f"{folder}: not enough disk space"):
        main([])
    assert hub.bodies() == []
    free = DiskUsage(0, 0, margin + total)
    faults[WEIGHTS] = [Fault(cut=5000), Fault(status=503)]
    with pytest.raises(InputError, match="503"):
        main([])
    left = total - 4096 - sum(len(content) for content in held(folder).values())
    free = DiskUsage(0, 0, margin + left - 1)
    with pytest.raises(InputError, match="not enough disk space"):
        main([])
    free = DiskUsage(0, 0, margin + left)
    main([])
    assert held(folder) == encoder


def test_a_folder_that_cannot_be_made(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/encoder: cannot create this folder \(Not a directory\)"):
        main(["--root_path", str(tmp_path), "--out", "file/encoder"])
    assert hub.bodies() == []


def test_a_file_of_the_users_is_not_overwritten(hub: FakeHub, folder: Path, encoder: dict[str, bytes]) -> None:
    folder.mkdir(parents=True)
    (folder / WEIGHTS).write_bytes(b"my own weights")
    (folder / "config.json").write_bytes(encoder["config.json"])
    with pytest.raises(InputError, match=rf"{WEIGHTS}: is not the file of {MODEL}; move it away"):
        main([])
    assert (folder / WEIGHTS).read_bytes() == b"my own weights"
    assert hub.bodies() == []
    (folder / WEIGHTS).unlink()
    main([])
    assert "config.json" not in hub.bodies()  # the same file, however it came there
    assert held(folder) == encoder


def test_two_processes_do_not_write_one_file(
    hub: FakeHub, folder: Path, encoder: dict[str, bytes], faults: dict[str, list[Fault]]
) -> None:
    faults[WEIGHTS] = [Fault(cut=5000), Fault(status=503)]
    with pytest.raises(InputError):
        main([])
    with partial(folder).open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another process is downloading it"):
            main([])
    assert partial(folder).read_bytes() == encoder[WEIGHTS][:4096]


def test_a_download_to_a_poor_disk(
    hub: FakeHub, folder: Path, encoder: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_all(monkeypatch)
    main([])
    assert held(folder) == encoder


def test_names_that_leave_the_folder_are_refused(hub: FakeHub, tmp_path: Path, encoder: dict[str, bytes]) -> None:
    for name in ("../config.json", "/etc/passwd", "a/../../b", "a//b", "..\\b", "line\nbreak"):
        hub.hosted[MODEL].listed = [*encoder, name]
        with pytest.raises(InputError, match="unsafe paths, they leave their folder"):
            main(["--root_path", str(tmp_path)])
    assert list(tmp_path.iterdir()) == []


def test_an_encoder_that_cannot_be_loaded_is_not_done(hub: FakeHub, tmp_path: Path, encoder: dict[str, bytes]) -> None:
    config = json.loads(encoder["config.json"]) | {"model_type": "nothing-known"}
    hub.hosted[MODEL].files["config.json"] = json.dumps(config).encode()
    with pytest.raises(InputError, match="encoder: downloaded, but transformers cannot use its config"):
        main(["--out", str(tmp_path / "encoder")])
    assert json.loads((tmp_path / "encoder" / ".download.json").read_text())["complete"] is False


def test_another_model_is_pinned_to_the_commit_of_its_main_branch(
    hub: FakeHub, tmp_path: Path, encoder: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.host("some/encoder", encoder, commit="a" * 40)
    arguments = ["--root_path", str(tmp_path), "--out", "here", "--model"]
    main([*arguments, "some/encoder"])
    record = json.loads((tmp_path / "here" / ".download.json").read_text())
    assert (record["revision"], record["commit"]) == ("main", "a" * 40)
    assert {r.revision for r in hub.requests if r.kind != "api"} == {"a" * 40}
    # The token goes to the hub, not to the place that it redirects to.
    assert {(r.kind, r.authorization) for r in hub.requests} == {
        ("api", "Bearer hf_secret"),
        ("hub", "Bearer hf_secret"),
        ("cdn", None),
    }
    with pytest.raises(InputError, match=f"holds files of some/encoder, not of {MODEL}"):
        main([*arguments, MODEL])


def test_a_new_commit_fetches_what_changed(hub: FakeHub, folder: Path, encoder: dict[str, bytes]) -> None:
    main([])
    changed = encoder | {"config.json": encoder["config.json"] + b"\n"}
    hub.host(MODEL, changed, commit="b" * 40)
    hub.requests.clear()
    main(["--revision", "main"])
    assert hub.bodies() == ["config.json"]
    assert held(folder) == changed


def test_a_damaged_record_costs_nothing_but_reading(hub: FakeHub, folder: Path) -> None:
    main([])
    (folder / ".download.json").write_text('{"files": 1')
    hub.requests.clear()
    main([])
    assert hub.bodies() == []
    assert json.loads((folder / ".download.json").read_text())["complete"] is True


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


def test_the_command(hub: FakeHub, encoder: dict[str, bytes], tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "HF_HOME": str(tmp_path / "home"), "HOME": str(tmp_path / "home")}
    command = [sys.executable, str(REPOSITORY / "utils" / "download_roberta.py")]

    def run(**changes: str) -> "subprocess.CompletedProcess[str]":
        where = environment | {"HF_ENDPOINT": hub.url, "NO_PROXY": "127.0.0.1"} | changes
        return subprocess.run(command, cwd=tmp_path, env=where, capture_output=True, text=True, timeout=60)

    refused = run(HF_HUB_ETAG_TIMEOUT="abc")  # at which the import of huggingface_hub fails
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("error: HF_HUB_ETAG_TIMEOUT 'abc': expected a whole number of seconds")
    assert refused.stderr.count("\n") == 1
    done = run()
    assert (done.returncode, done.stderr) == (0, "")
    folder = tmp_path / "checkpoints" / "roberta-large"
    assert held(folder) == encoder
    assert done.stdout.splitlines()[-1].endswith(f"tokens of width {WIDTH}")
