"""The files in which the arrays of an HDF5 file are stored: itself, external links, virtual sources or raw files.

HDF5 reads a virtual dataset whose source is missing as zeros, so missing sources are detected here.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py

from method.runtime.errors import InputError

# Resolved path of a file, and the address of an array in it (-1 for a raw file).
LinkedArray = tuple[str, int]

_OPEN_FILES = 8
_LINKS_FOLLOWED = 32


class LinkResolver:
    """Resolves the links of an open HDF5 file."""

    def __init__(self, file: h5py.File) -> None:
        self._file = file
        self._name = h5py.h5f.get_name(file.id)
        self._opened: dict[str, h5py.File] = {}

    def resolve(self, stored: Any) -> tuple[LinkedArray, ...]:
        """Where an array (an h5py.h5d.DatasetID) is stored; empty if that is the file itself.

        Raises:
            InputError: for a missing source; the message continues a sentence that starts with the array's name.
        """
        layout = stored.get_create_plist()
        is_plain = layout.get_layout() != h5py.h5d.VIRTUAL and not layout.get_external_count()
        if is_plain and h5py.h5f.get_name(stored) == self._name:
            return ()
        found: dict[LinkedArray, None] = {}
        self._follow(stored, found)
        return tuple(found)

    def broken_link(self, name: str) -> str | None:
        """The target of an external link on the path `name`, if that file cannot be opened."""
        with contextlib.suppress(KeyError, OSError, RuntimeError, TypeError, ValueError):  # a corrupt file
            return self._broken_link(self._file, name, _LINKS_FOLLOWED)
        return None

    def _follow(self, stored: Any, found: dict[LinkedArray, None]) -> None:
        owner, layout = os.fsdecode(h5py.h5f.get_name(stored)), stored.get_create_plist()
        source = os.path.realpath(owner), int(h5py.h5o.get_info(stored).addr)
        if source in found:
            return
        found[source] = None
        for number in range(layout.get_external_count()):
            path = _raw_file(os.fsdecode(layout.get_external(number)[0]), owner)
            if not os.path.exists(path):
                raise InputError(f"is stored in the raw file {path}, which is missing")
            found[os.path.realpath(path), -1] = None
        if layout.get_layout() == h5py.h5d.VIRTUAL:
            maps = range(layout.get_virtual_count())
            for names in {(layout.get_virtual_filename(i), layout.get_virtual_dsetname(i)): None for i in maps}:
                for part in self._virtual_sources(stored, owner, *names):
                    self._follow(part, found)

    def _virtual_sources(self, stored: Any, owner: str, file_name: str, array_name: str) -> Iterator[Any]:
        """The source arrays of one mapping of a virtual dataset; %b in a name counts blocks until one is missing."""
        for block in itertools.count():
            path_given, array = (_numbered(name, block) for name in (file_name, array_name))
            try:
                file = h5py.h5i.get_file_id(stored) if path_given == "." else self._open(path_given, owner)
                part = h5py.h5d.open(file, array.encode())
            except (OSError, KeyError, ValueError, RuntimeError, InputError) as error:
                if block:
                    return
                raise InputError(
                    f"is a virtual dataset, and its source {array!r} in {path_given} is missing or cannot be read"
                ) from error
            yield part
            if (path_given, array) == (_numbered(file_name, block + 1), _numbered(array_name, block + 1)):
                return

    def _open(self, name: str, owner: str) -> Any:
        path = next(filter(os.path.exists, _candidates(name, owner, "HDF5_VDS_PREFIX")), None)
        if path is None:
            raise InputError(f"{name}: no such file")
        if path not in self._opened:
            while len(self._opened) >= _OPEN_FILES:  # there may be a file for each video
                self._opened.pop(next(iter(self._opened))).close()
            self._opened[path] = h5py.File(path, "r", locking=False)
        return self._opened[path].id

    def _broken_link(self, file: h5py.File, name: str, links: int) -> str | None:
        parts = [part for part in name.split("/") if part]
        for end in range(1, len(parts) + 1):
            link, rest = file.get("/".join(parts[:end]), getlink=True), "/".join(parts[end:])
            if not links or isinstance(link, h5py.HardLink):
                continue
            if isinstance(link, h5py.SoftLink):
                start = "" if link.path.startswith("/") else "/".join(parts[: end - 1])
                return self._broken_link(file, f"{start}/{link.path}/{rest}", links - 1)
            if isinstance(link, h5py.ExternalLink):
                candidates = _candidates(link.filename, file.filename, "HDF5_EXT_PREFIX")
                path = next(filter(os.path.exists, candidates), None)
                if path is None:
                    return str(link.filename)
                try:
                    with h5py.File(path, "r", locking=False) as other:
                        return self._broken_link(other, f"{link.path}/{rest}", links - 1)
                except OSError:
                    return path
        return None


def _numbered(name: str, block: int) -> str:
    """Expand the name of a source: %b is the number of the block, %% a percent sign."""
    return re.sub("%([%b])", lambda match: "%" if match[1] == "%" else str(block), name)


def _candidates(name: str, owner: str, variable: str) -> Iterator[str]:
    """Paths at which HDF5 looks for a linked file, in its order (H5F_prefix_open_file)."""
    if os.path.isabs(name):
        yield name
        name = os.path.basename(name)
    for prefix in filter(None, os.environ.get(variable, "").split(":")):
        yield os.path.join(prefix.replace("${ORIGIN}", os.path.dirname(owner) or "."), name)
    yield os.path.join(os.path.dirname(owner), name)
    yield name
    yield os.path.join(os.path.dirname(os.path.realpath(owner)), name)


def _raw_file(name: str, owner: str) -> str:
    prefix = os.environ.get("HDF5_EXTFILE_PREFIX", "").replace("${ORIGIN}", os.path.dirname(owner) or ".")
    return os.path.join(prefix, name)


def state_of(path: Path | str) -> dict[str, int]:
    """Size and times of a file, which differ after any change to it."""
    status = os.stat(path)
    # Unlike mtime, ctime is not restored when another file is copied over this one with its times (cp -p).
    return {"size": status.st_size, "modified": status.st_mtime_ns, "changed": status.st_ctime_ns}
