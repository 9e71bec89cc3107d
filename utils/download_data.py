"""Download a released dataset, and with --checkpoint the released model, to where the launch scripts expect them.

    python utils/download_data.py charades --checkpoint

Interrupted downloads are resumed, and nothing is downloaded twice. At the end the dataset is checked as before a
training.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from method.config.flags import make_parser
from method.config.options import CONFIGS, VOCABULARY_FILES, read_yaml
from method.config.parser import Parser, user_path
from method.data.dataset_files import DATA_FILES
from method.runtime.errors import InputError, run_command, summarize
from method.runtime.hub.archives import SUFFIXES, unpack
from method.runtime.hub.fetch import fetch, refuse_foreign
from method.runtime.hub.record import RECORD_NAME, Record, digests
from method.runtime.hub_environment import check_environment
from utils.check_dataset import main as check_dataset

if TYPE_CHECKING:  # as in method/runtime/hub/fetch.py
    from method.runtime.hub.repository import Repository

HUB_REPOSITORY = "chadcs/A3PRVR_AAAI2026"
# dataset -> data folder and checkpoint in the repository
RELEASES = {
    "charades": ("charades_dataset", "charades.ckpt"),
    "activitynet": ("anet_dataset", "anet.ckpt"),
    "tvr": ("tvr_dataset", "tvr.ckpt"),
}


@dataclass(frozen=True)
class Plan:
    """Which files of a repository to download for one record.

    files: name below the record's folder -> path in the repository.
    packed: names that can only be in an archive -> whether training needs them.
    archives: paths of archives to unpack.
    others: paths to skip.
    """

    files: dict[str, str]
    packed: dict[str, bool]
    archives: list[str]
    others: list[str]


def main(arguments: Sequence[str] | None = None) -> None:
    """Download and check the dataset. InputError, in one line, for anything that goes wrong."""
    options = _read_arguments(arguments)
    root = options.root_path.absolute()
    download(options.name, root, checkpoint=options.checkpoint, repo=options.repo, revision=options.revision)
    check_dataset([options.name, "--root_path", str(root)])


def download(name: str, root: Path, *, checkpoint: bool, repo: str = HUB_REPOSITORY, revision: str = "main") -> None:
    """Download what is missing of a dataset, and with `checkpoint` of the released model, below `root`.

    InputError, in one line, for anything that goes wrong.
    """
    released, model = RELEASES[name]
    folder, needed = data_files(name)
    downloads = [(Record.read(root / folder / RECORD_NAME), released, needed)]
    if checkpoint:
        downloads += [(Record.read(root / "checkpoints" / f".{model}{RECORD_NAME}"), "", {model: True})]
    pending = [download for download in downloads if not _is_here(download[0], repo, revision)]
    if pending:
        check_environment()
        from method.runtime.hub.repository import open_repository

        repository = open_repository(repo, revision)
        plans = [(record, make_plan(repository, where, names)) for record, where, names in pending]
        for record, plan in plans:
            follow(plan, repository, record)


def data_files(dataset: str) -> tuple[Path, dict[str, bool]]:
    """The folder of a dataset, and its files -> whether training without edited captions needs them."""
    paths = read_yaml(CONFIGS / f"{dataset}.yaml", make_parser(""))
    folder = Path(os.path.commonpath([paths[key] for key in (*DATA_FILES, *VOCABULARY_FILES)]))
    names = {key: paths[key].relative_to(folder).as_posix() for key in (*DATA_FILES, *VOCABULARY_FILES)}
    return folder, {name: key in DATA_FILES for key, name in names.items()}


def make_plan(repository: Repository, released: str, needed: dict[str, bool]) -> Plan:
    """Find files in a repository by name at any depth, preferring the folder `released`.

    Without a folder ("") archives are ignored and no file counts as skipped.

    InputError for a file that training needs and that is missing or ambiguous.
    """
    found = {name: _find(repository, released, PurePosixPath(name).name) for name in needed}
    files = {name: path for name, path in found.items() if path is not None}
    packed = {name: required for name, required in needed.items() if name not in files}
    inside = [path for path in repository.paths if released in path.split("/")[:-1]]
    whole = [path for path in repository.paths if PurePosixPath(path).name in {released + end for end in SUFFIXES}]
    archives = [path for path in sorted({*inside, *whole}) if packed and path.endswith(SUFFIXES)]
    if not archives:
        _refuse_missing(repository, packed)
    others = {path for path in inside if not path.endswith(".ckpt")} - set(files.values()) - set(archives)
    return Plan(files, packed, archives, sorted(others))


def follow(plan: Plan, repository: Repository, record: Record) -> None:
    """Download the files of a plan, unpack its archives, and complete the record."""
    sources = {name: repository.describe(path) for name, path in plan.files.items()}
    # Archives are hidden files beside their contents until everything is unpacked.
    archives = {f".{path.replace('/', '_')}": repository.describe(path) for path in plan.archives}
    fetch(repository, sources | archives, record)
    missing, others = dict(plan.packed), list(plan.others)
    for archive, file in archives.items():
        others += _unpack(archive, file.path, missing, record)
    _refuse_missing(repository, missing)
    for archive in archives:
        (record.path.parent / archive).unlink(missing_ok=True)
    if missing:
        names = summarize([PurePosixPath(name).name for name in missing])
        print(f"{repository.name}: lacks {names}, which --neg_query_loss needs")
    if others:
        print(f"{repository.name}: skipped unused files: {summarize(others)}")
    record.finish((plan.files.keys() | plan.packed.keys()) - missing.keys())


def _unpack(archive: str, source: str, missing: dict[str, bool], record: Record) -> list[str]:
    """Unpack an archive and remove its files from `missing`; returns the paths of unused files."""
    folder, etag = record.path.parent, record.files[archive].etag
    names = {PurePosixPath(name).name: name for name in missing}
    for name in names.values():
        refuse_foreign(name, record)
    wanted = {short: folder / name for short, name in names.items() if not record.holds(name, etag)}
    for short in wanted:
        record.claim(names[short], source, etag)
    others = []
    for member, placed in unpack(folder / archive, wanted):
        short = PurePosixPath(member).name
        if placed:
            record.add(names[short], f"{source}/{member}", etag, digests(folder / names[short])["sha256"])
        if short in names:
            missing.pop(names[short], None)
        else:
            others.append(f"{source}/{member}")
    return others


def _find(repository: Repository, released: str, name: str) -> str | None:
    candidates = [path for path in repository.paths if PurePosixPath(path).name == name]
    candidates = [path for path in candidates if released in path.split("/")[:-1]] or candidates
    if len(candidates) > 1 and len({repository.describe(path).etag for path in candidates}) > 1:
        raise InputError(f"{repository.name}: {name} is ambiguous: {summarize(candidates)}")
    return candidates[0] if candidates else None


def _refuse_missing(repository: Repository, missing: dict[str, bool]) -> None:
    names = [PurePosixPath(name).name for name, required in missing.items() if required]
    if names:
        raise InputError(f"{repository.name} at {repository.revision}: lacks {summarize(names)}")


def _is_here(record: Record, repo: str, revision: str) -> bool:
    if not record.is_complete(repo, revision):
        return False
    names = ", ".join(sorted(PurePosixPath(name).name for name in record.files))
    print(f"{record.path.parent}: {repo} at {record.commit} is already complete: {names}")
    return True


def _read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description="Download a released dataset from the Hugging Face Hub.")
    parser.add_argument("name", choices=sorted(RELEASES), help="dataset")
    parser.add_argument("--checkpoint", action="store_true", help="also download the released model, to checkpoints/")
    parser.add_argument("--repo", default=HUB_REPOSITORY, help="model repository on the Hub")
    parser.add_argument("--revision", default="main", help="branch, tag or commit")
    parser.add_argument("--root_path", type=user_path, default=Path(), help="folder of dataset/ and checkpoints/")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run_command(main)
