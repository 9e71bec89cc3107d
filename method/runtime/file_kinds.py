"""What a file is by its first bytes, for messages about one that is not what was expected.

Downloads and copies that went wrong leave such files: a repository cloned without git-lfs, a saved web page, an archive
that was not unpacked.
"""

from __future__ import annotations

import io
import pickletools
import zipfile
from pathlib import Path

_HEAD, _LONGEST_PICKLE = 1 << 12, 1 << 20  # bytes that are looked at
_AGAIN = "download or copy it again"
_POINTER = b"version https://git-lfs.github.com/spec/"
_PAGES = (b"<!doctype html", b"<html", b"<head")
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!\x1a\x07": "RAR",
}
_FORMATS = {b"\x89HDF\r\n\x1a\n": "an HDF5 file", b"\x93NUMPY": "a NumPy array", b"GGUF": "a GGUF model"}
_TAR_MAGIC = slice(257, 262)


def stand_in(path: Path) -> str | None:
    """What lies in the place of a file when a download went wrong, and the remedy; None for anything else.

    No input of any program here is one of these: a Git LFS pointer, a web page, a compressed file.
    """
    head = _head(path)
    if head.startswith(_POINTER):
        return "a Git LFS pointer, not the file itself; `git lfs pull` in its repository fetches that"
    if head.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith(_PAGES):
        return (
            "a web page, not the file itself; download that from its direct link (on the Hugging Face Hub with "
            "/resolve/ in the place of /blob/)"
        )
    for magic, name in _COMPRESSED.items():
        if head.startswith(magic):
            return f"compressed ({name}); unpack it first"
    return None


def describe(path: Path) -> str | None:
    """What a file is that a reader could not make sense of, and the remedy; None when that cannot be told."""
    head = _head(path)
    if not head:
        return f"an empty file; {_AGAIN}"
    if found := stand_in(path):
        return found
    for magic, name in _FORMATS.items():
        if head.startswith(magic):
            return name
    if int.from_bytes(head[:8], "little") < 1 << 30 and head[8:10] == b'{"':
        return "a safetensors file"
    if head[_TAR_MAGIC] == b"ustar":
        return "a tar archive; unpack it first"
    if head.startswith(b"PK\x03\x04"):
        return _describe_zip(path)
    if not head.strip(b"\0"):
        return f"a file that begins with zeros only, as an interrupted copy leaves it; {_AGAIN}"
    if _is_text(head) and not _is_pickle(path):
        return f"text, beginning {' '.join(head[:80].decode(errors='ignore').split())[:40]!r}"
    return None


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD)


def _describe_zip(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return f"an incomplete archive of {path.stat().st_size} bytes; {_AGAIN}"
    if any(name.endswith("data.pkl") for name in names):  # written by torch.save
        return None
    return f"a zip archive of {len(names)} other files, such as {names[0][:60]!r}" if names else "an empty zip archive"


def _is_text(head: bytes) -> bool:
    text = head.decode(errors="replace")
    if "\ufffd" in text[:-1]:  # a character at the end may be cut
        return False
    return all(character.isprintable() or character in "\t\r\n\f\ufeff" for character in text[:-1])


def _is_pickle(path: Path) -> bool:
    """Whether these are whole instructions of a pickle, which are text in the oldest protocol; nothing is run."""
    with path.open("rb") as file:
        start = file.read(_LONGEST_PICKLE)
    try:
        for _ in pickletools.genops(io.BytesIO(start)):
            pass
    except Exception:  # what is no pickle makes the parser fail in many ways
        return False
    return True
