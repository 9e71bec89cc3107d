"""Download a released dataset and checkpoint, check the files, evaluate, and compare with the published numbers.

    python utils/reproduce.py charades
    python utils/reproduce.py tvr --root_path /data --device -1

Every step that is done already is skipped. The last line of the output is the row of the table in docs/results.md. Exit
status 1 if the numbers differ from published ones by more than the tolerance of docs/results.json.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import method  # noqa: F401 (sets OpenMP variables before torch is imported)

from method import evaluate
from method.config.options import read_options
from method.config.parser import Parser, user_path
from method.config.settings import run_name
from method.data.dataset_files import DATA_FILES
from method.data.linked_files import state_of
from method.evaluation.metrics import RECALLS
from method.runtime.errors import InputError, run_command
from method.runtime.files import digest_of, read_json, sha256, write_json
from method.runtime.run_folder import METRICS, REPOSITORY
from utils.check_dataset import main as check_dataset
from utils.download_data import HUB_REPOSITORY, RELEASES, download

RESULTS = REPOSITORY / "docs" / "results.json"
EXIT_DIFFERS = 1
_EXPERIMENT = "reproduce"
_CHECKED = "checked.json"

Row = Mapping[str, Any]


def main(arguments: Sequence[str] | None = None) -> None:
    """Go through the steps; exits with status 1 if the numbers are not the published ones."""
    given = _read_arguments(arguments)
    name, root = given.dataset, given.root_path.absolute()
    print(f"1. download the files of {name}")
    download(name, root, checkpoint=True, repo=given.repo, revision=given.revision)
    checkpoint = root / "checkpoints" / RELEASES[name][1]
    options = read_options(["--dataset_name", name, "--root_path", str(root), "--exp_id", _EXPERIMENT])
    files = {flag: state_of(options[flag]) for flag in DATA_FILES}
    folder = run_name(options).parent
    print("2. check them")
    _check(name, root, folder / _CHECKED, files)
    print("3. evaluate the released checkpoint")
    run = folder / f"released-{digest_of([sha256(checkpoint), files])[:12]}"
    if (run / METRICS).exists():
        print(f"{run}: done before")
    else:
        words = ["--dataset_name", name, "--root_path", str(root), "--eval_ckpt", str(checkpoint)]
        words += ["--exp_id", _EXPERIMENT, "--description", run.name]
        words += [] if given.device is None else ["--device", str(given.device)]
        words += [] if given.num_workers is None else ["--num_workers", str(given.num_workers)]
        evaluate.main(words)
    found = read_json(run / METRICS)["fused"]
    print("4. compare")
    table = read_json(RESULTS)
    rows = {row.get("kind"): row for row in table["datasets"][name]["rows"]}
    differences = compare(found, rows["published"], table["tolerance"])
    for line in differences or [_agreement(rows["published"])]:
        print(line)
    print("\n".join([*table_head(), markdown_row({**rows["released"], **{key: found[key] for key in RECALLS}})]))
    if differences:
        sys.exit(EXIT_DIFFERS)


def compare(found: Mapping[str, float], published: Row, tolerance: Mapping[str, float]) -> list[str]:
    """A line for each number that differs from the published one by more than the tolerance; unknown ones are skipped.

    >>> compare({"r1": 2.26, "sumr": 80.0}, {"r1": 2.1, "sumr": None}, {"recall": 0.1, "sumr": 0.2})
    ['R@1 is 2.26, published 2.1: differs by 0.16, more than the tolerance of 0.1']
    """
    lines = []
    for key, label in RECALLS.items():
        expected, allowed = published.get(key), tolerance["sumr" if key == "sumr" else "recall"]
        if expected is None:
            continue
        difference = abs(found[key] - expected)
        if not difference <= allowed + 1e-9:  # rounding of decimal numbers; NaN differs
            lines.append(
                f"{label} is {found[key]:.2f}, published {expected}: differs by {difference:.2f}, more than the "
                f"tolerance of {allowed}"
            )
    return lines


def markdown_table(rows: Sequence[Row]) -> str:
    """The table of docs/results.md for one dataset; a number that nobody published or measured is an empty cell."""
    return "\n".join([*table_head(), *map(markdown_row, rows)])


def table_head() -> list[str]:
    """The first two lines of a table."""
    names = ["method", "paper", "features", *RECALLS.values(), "source"]
    return [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]


def markdown_row(row: Row) -> str:
    """One line of a table."""
    numbers = ["" if row[key] is None else f"{row[key]:.1f}" for key in RECALLS]
    source = f"[README]({row['source']})" if row["source"] else ""
    return f"| {' | '.join([row['method'], row['paper'], row['features'], *numbers, source])} |"


def _agreement(published: Row) -> str:
    if any(published[key] is not None for key in RECALLS):
        return "the numbers are the published ones, within the tolerance"
    return "no published numbers are known to this program (docs/results.json), nothing to compare with"


def _check(name: str, root: Path, stamp: Path, files: Mapping[str, Any]) -> None:
    """Check every file of the dataset, unless these were checked before."""
    if stamp.exists() and read_json(stamp) == files:
        print(f"{stamp}: done before")
        return
    check_dataset([name, "--root_path", str(root), "--device", "-1"])
    write_json(stamp, files)


def _read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description="Evaluate a released checkpoint and compare it with the published numbers.")
    add = parser.add_argument
    add("dataset", choices=sorted(RELEASES), help="dataset")
    add("--root_path", type=user_path, default=Path(), help="folder of dataset/, checkpoints/ and results/")
    add("--device", type=int, help="GPU index, -1 for the CPU (default: the first GPU, or the CPU if there is none)")
    add("--num_workers", type=int, help="data loader processes (default: that of evaluate.py)")
    add("--repo", default=HUB_REPOSITORY, help="model repository on the Hub")
    add("--revision", default="main", help="branch, tag or commit")
    given = parser.parse_args(arguments)
    if not given.root_path.is_dir():
        raise InputError(f"--root_path {given.root_path}: no such folder")
    return given


if __name__ == "__main__":
    run_command(main)
