"""A feature file whose arrays lie in other files, linked to them in every way that HDF5 has."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import h5py

from method.data.features import ACTION_KEY, OBJECT_KEY


def external(main: Path, part: Path) -> None:
    """A link for each video."""
    with h5py.File(part, locking=False) as source, h5py.File(main, "w", locking=False) as file:
        for video in source:
            file[video] = h5py.ExternalLink(part.name, video)


def chain(main: Path, part: Path) -> None:
    """A soft link to a link in a file that has nothing but links to the part."""
    middle = part.with_name("middle.hdf5")
    external(middle, part)
    with h5py.File(middle, locking=False) as source, h5py.File(main, "w", locking=False) as file:
        for video in source:
            file[f"links/{video}"] = h5py.ExternalLink(str(middle), video)
            file[video] = h5py.SoftLink(f"/links/{video}")


def virtual(main: Path, part: Path) -> None:
    """A virtual dataset for each array, whose source is a link in another file."""
    middle = part.with_name("middle.hdf5")
    external(middle, part)
    with h5py.File(part, locking=False) as source, h5py.File(main, "w", locking=False) as file:
        for name in (f"{video}/{key}" for video in source for key in (ACTION_KEY, OBJECT_KEY)):
            layout = h5py.VirtualLayout(source[name].shape, "f4")
            layout[:] = h5py.VirtualSource(middle.name, name, source[name].shape)
            file.create_virtual_dataset(name, layout)


def raw(main: Path, part: Path) -> None:
    """Arrays whose numbers lie in files of numbers and nothing else; `part` becomes one of them."""
    with h5py.File(part, locking=False) as source:
        arrays = {f"{video}/{key}": source[video][key][()] for video in source for key in (ACTION_KEY, OBJECT_KEY)}
    end = 0
    with h5py.File(main, "w", locking=False) as file:
        part.write_bytes(b"")
        for name, rows in arrays.items():
            file.create_dataset(name, rows.shape, "f4", external=[(str(part), end, rows.nbytes)])[...] = rows
            end += rows.nbytes


def symbolic(main: Path, part: Path) -> None:
    """The file itself is a link of the file system."""
    main.symlink_to(part)


WAYS: dict[str, Callable[[Path, Path], None]] = {way.__name__: way for way in (external, chain, virtual, raw, symbolic)}


def link(main: Path, way: str) -> Path:
    """Move the content of a feature file to another one, which is returned, and link to it."""
    part = main.with_name("part.hdf5")
    main.rename(part)
    WAYS[way](main, part)
    return part


def change(part: Path, video: str) -> None:
    """Change a video in a file that others link to, or any part of one of numbers; size and time stay as they are."""
    status = part.stat()
    if h5py.is_hdf5(part):
        with h5py.File(part, "r+", locking=False) as file:
            for rows in file[video].values():
                rows[0] = rows[0] * 2 + 1
    else:
        with part.open("r+b") as raw_file:
            raw_file.write(b"\x01\x02\x03\x3f")
    os.utime(part, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert part.stat().st_size == status.st_size
