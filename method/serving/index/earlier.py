"""The index files of earlier versions, one for each split: recognised, and removed once there is a new index."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Iterator
from pathlib import Path

log = logging.getLogger(__name__)

SUBFOLDER = "zero_shot"  # of the index of zero-shot CLIP, whose earlier files lie beside it
_SPLITS = ("test", "train", "both", "all")


def earlier_files(folder: Path) -> Iterator[Path]:
    """The files that earlier versions made where this index is."""
    for split in _SPLITS:
        path = folder / f"{split}.pt" if folder.name != SUBFOLDER else folder.parent / f"{SUBFOLDER}_{split}.pt"
        if path.is_file() and _is_index(path):
            yield path


def remove_earlier(folder: Path) -> None:
    """Remove these files and their locks; says so in the log."""
    for path in earlier_files(folder):
        path.unlink()
        path.with_suffix(".lock").unlink(missing_ok=True)
        log.info("removed %s, an index of an earlier version", path)


def _is_index(path: Path) -> bool:
    """Whether a file is such an index, by the name of the format in its first part."""
    try:
        with zipfile.ZipFile(path) as archive:
            (record,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
            return b"A3PRVR index" in archive.read(record)
    except (OSError, ValueError, zipfile.BadZipFile):
        return False
