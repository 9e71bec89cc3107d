"""Detection of file types by their first bytes, for messages about unexpected files.

Typical causes are failed downloads and copies: a repository cloned without git-lfs, a saved web page, an archive that
was not unpacked.
"""

from __future__ import annotations

import io
import pickletools
import zipfile
from pathlib import Path

_HEAD, _LONGEST_PICKLE = 1 << 12, 1 << 20  # bytes that are read
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
    """Describe a file left by a failed download, with the remedy; None for any other file.

    These are Git LFS pointers, web pages and compressed files, none of which is a valid input of any program here.
    """
    head = _head(path)
    if head.startswith(_POINTER):
        return "a Git LFS pointer, not the file itself; `git lfs pull` in its repository downloads it"
    if head.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith(_PAGES):
        return (
            "a web page, not the file itself; download it from its direct link (on the Hugging Face Hub with "
            "/resolve/ instead of /blob/)"
        )
    for magic, name in _COMPRESSED.items():
        if head.startswith(magic):
            return f"compressed ({name}); unpack it first"
    return None


def describe(path: Path) -> str | None:
    """Describe a file that could not be parsed, with the remedy; None if its type is unknown."""
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
        return f"a file that begins with zeros, as left by an interrupted copy; {_AGAIN}"
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
    if "\ufffd" in text[:-1]:  # the last character may be truncated
        return False
    return all(character.isprintable() or character in "\t\r\n\f\ufeff" for character in text[:-1])


def _is_pickle(path: Path) -> bool:
    """Whether the file parses as a pickle, which is text in protocol 0; nothing is executed."""
    with path.open("rb") as file:
        start = file.read(_LONGEST_PICKLE)
    try:
        for _ in pickletools.genops(io.BytesIO(start)):
            pass
    except Exception:  # the parser fails in many ways on other files
        return False
    return True
