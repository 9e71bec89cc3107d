"""Fetch a released dataset, and with --checkpoint the released model too, to where the launchers look for them.

    python utils/download_data.py charades --checkpoint

Run it again after an interruption: it goes on where it stopped, and fetches nothing once everything is there. At the
end the dataset is checked the way training would check it.
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

from method.config.flags import Parser, make_parser, user_path
from method.config.options import CONFIGS, VOCABULARY_FILES, read_yaml
from method.data.dataset_files import DATA_FILES
from method.runtime.errors import InputError, run_command, summarize
from method.runtime.hub_environment import check_environment
from utils.check_dataset import main as check_dataset
from utils.hub.archives import SUFFIXES, unpack
from utils.hub.fetch import fetch, refuse_others
from utils.hub.record import RECORD_NAME, Record, digests

if TYPE_CHECKING:  # as in utils/hub/fetch.py
    from utils.hub.repository import Repository

HUB_REPOSITORY = "chadcs/A3PRVR_AAAI2026"
# dataset -> the folder of its data in the repository and the name of its checkpoint
RELEASES = {
    "charades": ("charades_dataset", "charades.ckpt"),
    "activitynet": ("anet_dataset", "anet.ckpt"),
    "tvr": ("tvr_dataset", "tvr.ckpt"),
}


@dataclass(frozen=True)
class Plan:
    """Where the files of one record come from.

    files: name below the record's folder -> path in the repository.
    packed: names that only an archive can have -> whether training needs them.
    archives, others: further paths in the repository, to be looked into and to be left.
    """

    files: dict[str, str]
    packed: dict[str, bool]
    archives: list[str]
    others: list[str]


def main(arguments: Sequence[str] | None = None) -> None:
    """Fetch what is asked for and check it. InputError, in one line, for everything that can go wrong on the way."""
    options = _read_arguments(arguments)
    root = options.root_path.absolute()
    released, checkpoint = RELEASES[options.name]
    folder, needed = data_files(options.name)
    downloads = [(Record.read(root / folder / RECORD_NAME), released, needed)]
    if options.checkpoint:
        downloads += [(Record.read(root / "checkpoints" / f".{checkpoint}{RECORD_NAME}"), "", {checkpoint: True})]
    pending = [download for download in downloads if not _is_here(download[0], options)]
    if pending:
        check_environment()
        from utils.hub.repository import open_repository

        repository = open_repository(options.repo, options.revision)
        plans = [(record, make_plan(repository, where, names)) for record, where, names in pending]
        for record, plan in plans:
            follow(plan, repository, record)
    check_dataset([options.name, "--root_path", str(root)])


def data_files(dataset: str) -> tuple[Path, dict[str, bool]]:
    """A dataset's folder below the root, and the files in it -> whether training without edited captions needs them."""
    paths = read_yaml(CONFIGS / f"{dataset}.yaml", make_parser(""))
    folder = Path(os.path.commonpath([paths[key] for key in (*DATA_FILES, *VOCABULARY_FILES)]))
    names = {key: paths[key].relative_to(folder).as_posix() for key in (*DATA_FILES, *VOCABULARY_FILES)}
    return folder, {name: key in DATA_FILES for key, name in names.items()}


def make_plan(repository: Repository, released: str, needed: dict[str, bool]) -> Plan:
    """Find files in a repository by their own names, at any depth, in the folder `released` before elsewhere.

    Without a folder ("") archives are not considered and nothing is left over.

    InputError naming those that training needs and that cannot be there, or that could be one of several files.
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
    """Fetch the files of a plan to their places, unpack those that archives have, and complete the record."""
    sources = {name: repository.describe(path) for name, path in plan.files.items()}
    # An archive lies, hidden, beside the files it has until all of them are out.
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
        print(f"{repository.name}: lacks {names}; --neg_query_loss cannot be used without them")
    if others:
        print(f"{repository.name}: left there, as nothing reads them: {summarize(others)}")
    record.finish((plan.files.keys() | plan.packed.keys()) - missing.keys())


def _unpack(archive: str, source: str, missing: dict[str, bool], record: Record) -> list[str]:
    """Take files out of a fetched archive and off `missing`; the paths of what else it has."""
    folder, etag = record.path.parent, record.files[archive].etag
    names = {PurePosixPath(name).name: name for name in missing}
    for name in names.values():
        refuse_others(name, record)
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
        raise InputError(f"{repository.name}: {name} could be any of {summarize(candidates)}")
    return candidates[0] if candidates else None


def _refuse_missing(repository: Repository, missing: dict[str, bool]) -> None:
    names = [PurePosixPath(name).name for name, required in missing.items() if required]
    if names:
        raise InputError(f"{repository.name} at {repository.revision}: lacks {summarize(names)}")


def _is_here(record: Record, options: argparse.Namespace) -> bool:
    if not record.is_complete(options.repo, options.revision):
        return False
    names = ", ".join(sorted(PurePosixPath(name).name for name in record.files))
    print(f"{record.path.parent}: {options.repo} at {record.commit} is already here: {names}")
    return True


def _read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description="Fetch a released dataset from the Hugging Face Hub to where the launchers look.")
    parser.add_argument("name", choices=sorted(RELEASES), help="dataset")
    parser.add_argument("--checkpoint", action="store_true", help="fetch the released model too, to checkpoints/")
    parser.add_argument("--repo", default=HUB_REPOSITORY, help="model repository on the hub")
    parser.add_argument("--revision", default="main", help="branch, tag or commit of it")
    parser.add_argument(
        "--root_path", type=user_path, default=Path(), help="folder that holds dataset/ and checkpoints/"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run_command(main)
