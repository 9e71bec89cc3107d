"""Damaged and malicious checkpoint files are refused, and nothing in them is executed."""

import bz2
import gzip
import io
import itertools
import lzma
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from method.model.retrieval import RetrievalModel
from method.runtime.errors import InputError
from method.training.checkpoint import load_model, model_content
from method.training.checkpoint_file import read_checkpoint, write_checkpoint
from tests.faults.pickle_bombs import BOMBS, WAYS_TO_CALL, pickled, pickler
from tests.helpers.small_models import SMALL

OPTIONS = {"bsz": 5, "dataset_name": "demo"}


# Malicious files


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", BOMBS)
def test_no_code_in_a_file_is_executed(tmp_path: Path, kind: str) -> None:
    """`tests/faults/test_faults.py` shows that Python's own pickle executes all of them."""
    mark, path, bomb = tmp_path / "ran", tmp_path / "bomb.ckpt", BOMBS[kind]
    contents = [bomb, {"model": {"a": torch.ones(1), "b": [(bomb,)]}}]
    forms: list[Callable[[], object]] = [
        partial(path.write_bytes, pickled(bomb, mark, way, n)) for way in WAYS_TO_CALL for n in (0, 4)
    ]
    for content, way, zipped in itertools.product(contents, WAYS_TO_CALL[:2], (True, False)):
        module: Any = SimpleNamespace(Pickler=pickler(mark, way), dump=pickle.dump, __name__="pickle")
        save = partial(torch.save, pickle_module=module, _use_new_zipfile_serialization=zipped)
        forms.append(partial(save, content, path))
    for write in forms:
        write()
        refused = r"bomb\.ckpt: checkpoint refused: it contains .*; nothing was executed$"
        with pytest.raises(InputError, match=refused) as caught:
            read_checkpoint(path)
        assert not mark.exists()
        assert "\n" not in str(caught.value)


def test_an_archive_of_endless_zeros(tmp_path: Path) -> None:
    path = tmp_path / "bomb.ckpt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10_000_000))
    with pytest.raises(InputError, match="its records are larger than the file"):
        read_checkpoint(path)


# Damaged files


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_checkpoint(tmp_path / "x.ckpt")
    with pytest.raises(InputError, match="found a folder"):
        read_checkpoint(tmp_path)


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
    with pytest.raises(InputError, match=f"an incomplete archive of {end} bytes"):
        read_checkpoint(path)


def test_damage_never_changes_a_weight(tmp_path: Path, whole: tuple[bytes, dict[str, Any]]) -> None:
    """A flipped bit in the weights, most of the file, or random bytes in it, its first records or its directory."""
    content, expected = whole
    path, random = tmp_path / "x.ckpt", np.random.default_rng(0)
    refused = 0
    for i in range(240):
        damaged = bytearray(content)
        if i % 2:
            damaged[random.integers(len(content))] ^= 1 << random.integers(8)
        else:
            low, high = [(0, len(content)), (0, 200), (content.index(b"PK\x01\x02"), len(content))][i // 2 % 3]
            start = int(random.integers(low, high))
            damaged[start : start + 20] = random.bytes(len(damaged[start : start + 20]))
        path.write_bytes(damaged)
        refused += not loads_as_written_or_not_at_all(path, expected)
    assert refused > 120
