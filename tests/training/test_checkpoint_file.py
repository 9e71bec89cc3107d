"""Damaged and malicious checkpoint files are refused, and nothing in them is executed."""

import builtins
import bz2
import gzip
import io
import lzma
import os
import pickle
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from method.model.retrieval import RetrievalModel
from method.runtime.errors import InputError
from method.training.checkpoint import load_model, model_content
from method.training.checkpoint_file import read_checkpoint, write_checkpoint
from tests.helpers.small_models import SMALL

OPTIONS = {"bsz": 5, "dataset_name": "demo"}


# Malicious files


class Bomb:
    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.reduced = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reduced


BOMBS: dict[str, Callable[[str], Bomb]] = {
    "os.system": lambda mark: Bomb(os.system, f"touch {mark}"),
    "eval": lambda mark: Bomb(eval, f"open({mark!r}, 'w')"),
    "exec": lambda mark: Bomb(builtins.exec, f"open({mark!r}, 'w').close()"),
    "open": lambda mark: Bomb(open, mark, "w"),
    "mkdir": lambda mark: Bomb(os.mkdir, mark),
}
PLACES: dict[str, Callable[[Any], Any]] = {
    "content": lambda bomb: bomb,
    "beside": lambda bomb: {"model": {"a": torch.ones(1)}, "epoch": 1, "opt": bomb},
    "weight": lambda bomb: {"model": {"a": torch.ones(1), "b": bomb}, "epoch": 1},
    "nested": lambda bomb: {"model": OrderedDict(a=torch.ones(1)), "epoch": 1, "x": [{"y": (1, {"z": bomb})}]},
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", BOMBS)
def test_no_code_in_a_file_is_executed(tmp_path: Path, kind: str, place: str) -> None:
    mark, path = tmp_path / "ran", tmp_path / "bomb.ckpt"
    content = PLACES[place](BOMBS[kind](str(mark)))
    forms: dict[str, Callable[[], Any]] = {
        "archive": lambda: torch.save(content, path),
        "older": lambda: torch.save(content, path, _use_new_zipfile_serialization=False),
    }
    for protocol in range(6):
        forms[f"pickle {protocol}"] = partial(path.write_bytes, pickle.dumps(BOMBS[kind](str(mark)), protocol))
    for name, write in forms.items():
        write()
        with pytest.raises(
            InputError, match=r"bomb\.ckpt: checkpoint refused: it contains .*; nothing was executed$"
        ) as caught:
            read_checkpoint(path)
        assert not mark.exists(), name
        assert "\n" not in str(caught.value)


def test_plain_pickle_executes_the_bombs(tmp_path: Path) -> None:
    """So the test above can fail: Python's own pickle runs what it forbids."""
    for kind in BOMBS:
        mark = tmp_path / kind
        result = pickle.loads(pickle.dumps(BOMBS[kind](str(mark))))
        if hasattr(result, "close"):
            result.close()
        assert mark.exists()


def test_the_forbidden_function_is_named(tmp_path: Path) -> None:
    torch.save({"model": {}, "x": Bomb(os.system, "true")}, tmp_path / "bomb.ckpt")
    with pytest.raises(InputError, match=rf"it contains {os.system.__module__}\.system"):
        read_checkpoint(tmp_path / "bomb.ckpt")


def test_an_archive_of_endless_zeros(tmp_path: Path) -> None:
    path = tmp_path / "bomb.ckpt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10_000_000))
    with pytest.raises(InputError, match="its records are larger than the file"):
        read_checkpoint(path)


# Damaged files


@pytest.mark.parametrize("content", {
    "empty": b"",
    "a letter": b"x",
    "text": b"not a checkpoint\n" * 100,
    "two letters of an archive": b"PK",
    "archive without end": b"PK\x03\x04" + bytes(100),
    "empty pickle": b"\x80\x02.",
}.values())  # fmt: skip
def test_files_that_are_not_checkpoints(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.ckpt").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.ckpt: (not a readable checkpoint|checkpoint refused)"):
        read_checkpoint(tmp_path / "x.ckpt")


def test_a_missing_file_a_folder_and_a_foreign_archive(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_checkpoint(tmp_path / "x.ckpt")
    with pytest.raises(InputError, match="found a folder"):
        read_checkpoint(tmp_path)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.txt", "hello")
    with pytest.raises(InputError, match="not a readable checkpoint"):
        read_checkpoint(tmp_path / "x.zip")


def archive_of(name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, "hello")
    return buffer.getvalue()


def tar_of(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        entry = tarfile.TarInfo("m.ckpt")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


@pytest.mark.parametrize(("content", "found"), [
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64, "a Git LFS pointer.*`git lfs pull`"),
    (b"\xef\xbb\xbf\n<!DOCTYPE html>\n<html><title>Sign in</title></html>", "a web page.*/resolve/"),
    (b"<HTML lang='en'>", "a web page"),
    *((pack(b"weights" * 100), rf"compressed \({name}\); unpack it first")
      for pack, name in ((gzip.compress, "gzip"), (bz2.compress, "bzip2"), (lzma.compress, "xz"))),
    (safetensors.torch.save({"a": torch.zeros(2)}), "a safetensors file"),
    (safetensors.torch.save({"a": torch.zeros(2)}, {"format": "pt"}), "a safetensors file"),
    (archive_of("weights.bin"), "a zip archive of 1 other files, such as 'weights.bin'"),
    (tar_of(b"weights"), "a tar archive; unpack it first"),
    (b"", "an empty file; download or copy it again"),
    (bytes(5000), "begins with zeros, as left by an interrupted copy.*copy it again"),
    (b"PK\x03\x04" + bytes(100), "an incomplete archive of 104 bytes; download or copy it again"),
    (b"\x89HDF\r\n\x1a\n" + bytes(100), "an HDF5 file"),
    (b"caption one.\ncaption two.\n" * 1000, "text, beginning 'caption one. caption two. "),
    ("déjà vu\n".encode() * 1000, "text, beginning 'déjà vu"),
    (b'{"error": "Invalid username or password."}', 'text, beginning .*"error"'),
], ids=lambda value: value[:20] if isinstance(value, str) else "")  # fmt: skip
def test_the_kind_of_another_file_is_named(tmp_path: Path, content: bytes, found: str) -> None:
    path = tmp_path / "x.ckpt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"^{path}: .*{found}") as caught:
        read_checkpoint(path)
    assert "refused" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_truncated_checkpoint_is_called_incomplete(tmp_path: Path, whole: tuple[bytes, dict[str, Any]]) -> None:
    content, _ = whole
    (tmp_path / "x.ckpt").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=f"an incomplete archive of {len(content) // 2} bytes"):
        read_checkpoint(tmp_path / "x.ckpt")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, dict[str, Any]]:
    path = tmp_path_factory.mktemp("whole") / "m.ckpt"
    model = RetrievalModel(replace(SMALL, fusion="none", temperatures=(), hidden_size=8))
    content = model_content(model, 3, OPTIONS)
    write_checkpoint(path, content)
    return path.read_bytes(), content


def loads_as_written_or_not_at_all(path: Path, expected: dict[str, Any]) -> bool:
    try:
        loaded = load_model(path, SMALL)
    except InputError as error:
        if str(error).startswith(f"{path}: ") and "\n" not in str(error):
            return False
        raise
    assert (loaded.epoch, loaded.options) == (expected["epoch"], expected["options"])
    state = loaded.model.state_dict()
    assert all(torch.equal(weight, state[name]) for name, weight in expected["model"].items())
    return True


def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path: Path, whole: tuple[bytes, dict[str, Any]]) -> None:
    content, expected = whole
    path = tmp_path / "x.ckpt"
    for end in sorted({*range(0, len(content), len(content) // 60), len(content) - 1}):
        path.write_bytes(content[:end])
        assert not loads_as_written_or_not_at_all(path, expected), end


def test_a_flipped_bit_never_changes_a_weight(tmp_path: Path, whole: tuple[bytes, dict[str, Any]]) -> None:
    """Most of a checkpoint is weights, where only a checksum shows damage."""
    content, expected = whole
    path, random = tmp_path / "x.ckpt", np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        damaged = bytearray(content)
        damaged[random.integers(len(content))] ^= 1 << random.integers(8)
        path.write_bytes(damaged)
        refused += not loads_as_written_or_not_at_all(path, expected)
    assert refused > 75


def test_overwritten_stretches_and_headers(tmp_path: Path, whole: tuple[bytes, dict[str, Any]]) -> None:
    content, expected = whole
    path, random = tmp_path / "x.ckpt", np.random.default_rng(1)
    directory = content.index(b"PK\x01\x02")
    for i in range(150):
        damaged = bytearray(content)
        low, high = [(0, len(content)), (0, 200), (directory, len(content))][i % 3]
        start = int(random.integers(low, high))
        length = int(random.integers(1, 40)) if i % 2 else 1
        damaged[start : start + length] = random.bytes(len(damaged[start : start + length]))
        path.write_bytes(damaged)
        loads_as_written_or_not_at_all(path, expected)
