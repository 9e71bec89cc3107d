"""The command that fetches the encoders, against a hub and a GitHub on the loopback."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from method.runtime.errors import InputError
from tests.helpers.small_clip import WIDTH, make_clip
from tests.helpers.small_i3d import write_small_i3d
from tests.utils.fake_hub import FakeHub
from utils import download_encoders
from utils.download_encoders import CLIP, CLIP_COMMIT, I3D, I3D_COMMIT, main


def sha256_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = make_clip(tmp_path_factory.mktemp("made") / "clip")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def i3d(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_small_i3d(tmp_path_factory.mktemp("made") / "i3d.pt").read_bytes()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, clip: dict[str, bytes], i3d: bytes) -> Iterator[FakeHub]:
    """Both sources, with digests of the small encoders in place of the real ones."""
    with FakeHub() as hub:
        hub.environment(monkeypatch)
        hub.host(CLIP, clip | {"pytorch_model.bin": b"not to be fetched"}, commit=CLIP_COMMIT)
        for name in download_encoders.I3D_FILES:
            hub.raw[f"{I3D}/{I3D_COMMIT}/models/{name}"] = i3d
        monkeypatch.setattr(download_encoders, "GITHUB", hub.url)
        monkeypatch.setattr(
            download_encoders, "CLIP_DIGESTS", {"model.safetensors": sha256_of(clip["model.safetensors"])}
        )
        monkeypatch.setitem(download_encoders.I3D_FILES, "rgb_imagenet.pt", sha256_of(i3d))
        yield hub


def test_both_are_fetched_once(
    hub: FakeHub, tmp_path: Path, i3d: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    main(["--root_path", str(tmp_path)])
    said = capsys.readouterr().out
    assert said.startswith(f"to {tmp_path / 'checkpoints'}: clip (about 610 MB), i3d (about 100 MB)\n")
    assert f"embeddings of frames have width {WIDTH}" in said
    assert f"rgb_charades.pt: SHA-256 {sha256_of(i3d)} (recorded, not known before)" in said
    assert f"rgb_imagenet.pt: SHA-256 {sha256_of(i3d)} (as expected)" in said
    assert not (tmp_path / "checkpoints/clip-vit-base-patch32/pytorch_model.bin").exists()
    record = json.loads((tmp_path / "checkpoints/i3d/.download.json").read_text())
    assert (record["commit"], record["complete"]) == (I3D_COMMIT, True)
    # The token of the Hub goes to the Hub.
    assert {r.authorization for r in hub.requests if "/models/rgb" in r.path or r.path.startswith(I3D)} <= {None}
    hub.requests.clear()
    main(["--root_path", str(tmp_path)])
    assert hub.requests == []
    assert capsys.readouterr().out.count("is already complete") == 2


def test_a_changed_file_is_refused(hub: FakeHub, tmp_path: Path, i3d: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(download_encoders.I3D_FILES, "rgb_imagenet.pt", "0" * 64)
    with pytest.raises(InputError, match=r"rgb_imagenet\.pt: corrupt download"):
        main(["i3d", "--root_path", str(tmp_path)])
    monkeypatch.setattr(download_encoders, "CLIP_DIGESTS", {"model.safetensors": "0" * 64})
    with pytest.raises(InputError, match=r"model.safetensors: its SHA-256 is [0-9a-f]{64}, expected 0000"):
        main(["clip", "--root_path", str(tmp_path)])
    assert json.loads((tmp_path / "checkpoints/clip-vit-base-patch32/.download.json").read_text())["complete"] is False


def test_other_weights_are_refused(hub: FakeHub, tmp_path: Path) -> None:
    hub.raw[f"{I3D}/{I3D_COMMIT}/models/rgb_charades.pt"] = b"no weights\n"
    with pytest.raises(InputError, match=r"rgb_charades\.pt: not a file of I3D weights"):
        main(["i3d", "--root_path", str(tmp_path)])


def test_a_missing_file_is_named(hub: FakeHub, tmp_path: Path) -> None:
    del hub.raw[f"{I3D}/{I3D_COMMIT}/models/rgb_charades.pt"]
    with pytest.raises(InputError, match=f"{I3D}.*{hub.url}"):
        main(["i3d", "--root_path", str(tmp_path)])


def test_an_unknown_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises((SystemExit, InputError), match="expected clip, i3d, roberta-large"):
        main(["nothing"])
