"""Models that are named as on the Hugging Face Hub, `owner/name` or `owner/name@revision`: found or fetched."""

from __future__ import annotations

import contextlib
import logging
import re
import sys
from pathlib import Path

from method.runtime.disk import format_bytes
from method.runtime.errors import InputError
from method.runtime.hub.fetch import fetch, make_folder
from method.runtime.hub.record import RECORD_NAME, Record
from method.runtime.hub_environment import check_environment
from method.runtime.locks import exclusive_lock

log = logging.getLogger(__name__)

WEIGHTS, CONFIG, METRICS, CARD = "model.safetensors", "config.json", "metrics.json", "README.md"
MAX_CONFIG_BYTES = 1 << 20
_NEEDED, _OPTIONAL = (CONFIG, WEIGHTS), (METRICS, CARD)
_LIMITS = {WEIGHTS: 1 << 34, CONFIG: MAX_CONFIG_BYTES, METRICS: MAX_CONFIG_BYTES, CARD: MAX_CONFIG_BYTES}
_NAME = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w.-]+(?:/[\w.-]+)*))?")
_FILES = (".ckpt", ".pt", ".pth", ".safetensors", ".bin", ".json")


def find_model(given: Path, root: Path) -> Path:
    """A checkpoint as it is given, or the folder of the model of that name on the Hub, which is fetched if needed.

    What is there wins: a path is the name of a model only if it is relative, neither it nor its first folder exists
    below `root`, and it does not end like a file.

    Args:
        given: as on the command line.
        root: folder that relative paths start from; models are put below its `checkpoints/hub/`.

    Raises:
        InputError: no such model, one in another form, or what goes wrong with a download.
    """
    match = _NAME.fullmatch(given.as_posix())
    if match is None or (root / given.parts[0]).exists() or given.suffix in _FILES:
        return given
    name, revision = match["name"], match["revision"] or "main"
    folder = root / "checkpoints" / "hub" / given.as_posix().replace("/", "--")
    make_folder(folder)
    with exclusive_lock(folder / ".lock", f"waiting for another process that fetches {name}"):
        record = Record.read(folder / RECORD_NAME)
        if record.is_complete(name, revision):
            log.info("%s: %s at %s, fetched before", folder, name, record.commit)
        else:
            log.info("%s: no such file or folder in %s, looking for a model of this name on the Hub", given, root)
            # Standard output belongs to the results of the program.
            with contextlib.redirect_stdout(sys.stderr):
                _fetch(name, revision, record)
    return folder


def _fetch(name: str, revision: str, record: Record) -> None:
    check_environment()
    from method.runtime.hub.repository import open_repository  # imported late, see fetch.py

    repository = open_repository(name, revision)
    if missing := [file for file in _NEEDED if file not in repository.paths]:
        raise InputError(
            f"{name} at {repository.commit}: lacks {' and '.join(missing)}, expected a model as "
            "utils/convert_checkpoint.py --safetensors writes it"
        )
    names = [file for file in (*_NEEDED, *_OPTIONAL) if file in repository.paths]
    files = {file: repository.describe(file) for file in names}
    for file, remote in files.items():
        if remote.size > _LIMITS[file]:
            limit = format_bytes(_LIMITS[file])
            raise InputError(f"{name}/{file}: {format_bytes(remote.size)}, expected at most {limit}; not fetched")
    fetch(repository, files, record)
    record.finish(names)
