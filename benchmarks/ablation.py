"""Which changes help: trainings of configurations x worlds x seeds, and a table of means and paired differences.

    python benchmarks/ablation.py                                        # synthetic data, changes of ablation.yaml
    python benchmarks/ablation.py --only ema plus --seeds "1 2 3" --jobs 2 --out ablation
    python benchmarks/ablation.py --world "A=/data/A --dataset_name charades" --world "B=/data/B --dataset_name tvr"
    python benchmarks/ablation.py ... -- --n_epoch 30 --device 0         # flags of every training

A world is a folder of `dataset/` in the published layout, with the flags of its trainings. Configurations: "published",
the flags of the world alone; each change of --changes on top; the recipe --recipe, and it without each of its changes.

Each run is a training by method/train.py in a process of one thread. It selects its epoch on held-out training videos
and reports the evaluated split. The same command continues after an interruption: finished runs are kept, unfinished
ones resumed. The table is printed at the end, and after every run written to OUT/table.md.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import method  # noqa: F401 (sets OpenMP variables before torch is imported)

from easydict import EasyDict

from benchmarks.learning import SYNTHETIC
from benchmarks.measure import machine
from benchmarks.synthetic.dataset import write_dataset
from benchmarks.synthetic.world import Settings
from method.config.flags import make_parser
from method.config.options import CONFIGS, plain, read_options
from method.config.parser import AUTO, PUBLISHED, Parser, training_recipe, user_path
from method.config.recipes import read_recipe
from method.config.settings import run_name
from method.runtime.errors import InputError, PeerFailed, Stopped, run_command
from method.runtime.files import atomic_folder, write_text
from method.runtime.run_folder import log_to_terminal
from method.training.resume import find_run
from utils.runs.ablation_table import Key, Result, ablation_table, read_result
from utils.runs.configurations import as_flags, configurations, parse_world, read_changes
from utils.runs.tables import as_markdown, show
from utils.runs.trainings import Trainings
from utils.train_seeds import seed_list

log = logging.getLogger(__name__)

CHANGES = Path(__file__).with_name("ablation.yaml")
# Before the flags of a world, which override them.
_FLAGS = ["--holdout_fraction", "0.1", "--num_workers", "0", "--quiet"]
NOTES = [
    "SumR of the fused score, mean ± standard deviation over seeds, and that of each branch; epochs are selected on "
    "held-out training videos",
    f"more than {PUBLISHED}: mean ± standard error of the differences between runs of the same world and seed",
    f"time: minutes of training relative to {PUBLISHED}; trainings in parallel disturb each other",
]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the trainings that are missing and print the table."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    place = words.index("--") if "--" in words else len(words)
    given = _parser().parse_args(words[:place])
    log_to_terminal()
    if given.jobs < 1:
        raise InputError(f"--jobs {given.jobs}: expected at least 1")
    recipe = read_recipe(given.recipe, make_parser(""), CONFIGS / "recipes")
    changes = read_changes(given.changes)
    every = configurations(changes, Path(given.recipe).stem, recipe)
    if unknown := [name for name in given.only or () if name not in every]:
        raise InputError(f"--only {' '.join(unknown)}: expected some of {', '.join(every)}")
    chosen = {name: own for name, own in every.items() if not given.only or name in (PUBLISHED, *given.only)}
    out = given.out.absolute()
    worlds = dict(map(parse_world, given.world or ()))
    if len(worlds) < len(given.world or ()):
        raise InputError("--world: two have the same name")
    out.mkdir(parents=True, exist_ok=True)
    worlds = worlds or {"synthetic": ["--root_path", str(synthetic_world(out)), *SYNTHETIC]}
    flags = {
        (name, world): [*_FLAGS, *own, *words[place + 1 :], *as_flags(values)]
        for name, values in chosen.items()
        for world, own in worlds.items()
    }
    if any(word.split("=")[0] == "--seed" for own in flags.values() for word in own):
        raise InputError("--seed: --seeds chooses the seeds, expected one of them alone")
    named = {*changes, PUBLISHED, Path(given.recipe).stem, *(given.only or ())}
    ablation = Ablation(flags, out, {name for name in chosen if name not in named})
    keys = [
        Key(name, world, seed)
        for seed in given.seeds
        for world in worlds
        for name in chosen
        if ablation.trains(name, world)
    ]
    failed = ablation.train(keys, given.jobs)
    show([ablation_table(ablation.results, PUBLISHED)], NOTES, "text")
    if failed:
        names = "; ".join(" ".join(map(str, key)) for key in failed)
        raise PeerFailed(next(iter(failed.values())), f"error: {len(failed)} of {len(keys)} runs failed: {names}")


def _parser() -> Parser:
    parser = Parser(description="Train configurations x worlds x seeds and compare.", usage="%(prog)s [flags] -- FLAGS")
    add = parser.add_argument
    world = "data to train on, which may be repeated (default: synthetic features)"
    add("--world", action="append", metavar='"NAME=FOLDER FLAGS"', help=world)
    add("--changes", type=user_path, default=CHANGES, metavar="FILE", help="YAML file: name -> flags of a change")
    add("--recipe", type=training_recipe, default="plus", help="recipe to take apart: a name or a YAML file")
    add("--only", nargs="+", metavar="NAME", help="configurations to train beside the baseline (default: all)")
    add("--seeds", type=seed_list, default=[1, 2, 3], help="seeds, separated by spaces or commas")
    add("--jobs", type=int, default=1, help="trainings at a time")
    add("--out", type=user_path, default=Path("ablation"), metavar="DIR", help="folder of the runs and the table")
    return parser


def synthetic_world(out: Path) -> Path:
    """The folder of the synthetic features, which are written if they are not there."""
    folder = out / "synthetic features"
    if not folder.exists():
        with atomic_folder(folder) as unfinished:
            write_dataset(unfinished, Settings())
    return folder


class Ablation:
    """The runs below a folder, and their results.

    Args:
        flags: of method/train.py, for each configuration in each world. InputError for those that are wrong.
        out: the folder.
        optional: configurations that are left out, with a warning, if their flags do not go together: a recipe without
            a part that another of its flags needs.
    """

    def __init__(
        self, flags: Mapping[tuple[str, str], Sequence[str]], out: Path, optional: Collection[str] = ()
    ) -> None:
        self._results: dict[Key, Result] = {}
        self._out = out
        self._flags = {
            own: [*words, "--exp_id", own[0], "--results_root", str(out / "runs" / own[1]), "--resume", AUTO]
            for own, words in flags.items()
        }
        self._options: dict[tuple[str, str], EasyDict] = {}
        for own, words in self._flags.items():
            try:
                self._options[own] = _checked(*own, words)
            except InputError as error:
                if own[0] not in optional:
                    raise
                log.warning("left out: %s", error)

    def trains(self, name: str, world: str) -> bool:
        """Whether this configuration is trained in this world."""
        return (name, world) in self._options

    @property
    def results(self) -> dict[Key, Result]:
        """The results so far, in the order of the configurations."""
        places = {own: place for place, own in enumerate(self._flags)}
        return dict(sorted(self._results.items(), key=lambda item: (places[item[0][:2]], item[0].seed)))

    def train(self, keys: Sequence[Key], jobs: int) -> dict[Key, int]:
        """Train what is not finished, in this order; returns the status of failed runs.

        Stopped after a signal, when the running trainings have saved.
        """
        missing = [key for key in keys if not self._read(key)]
        log.info("%d of %d runs are finished", len(keys) - len(missing), len(keys))
        failed = {}
        trainings = Trainings(environment={"OMP_NUM_THREADS": "1"})
        with trainings, contextlib.closing(trainings.run(self._started(missing), jobs)) as ended:
            for key, status in ended:
                if self._read(key):
                    write_text(self._out / "table.md", self.as_markdown())
                elif not trainings.received:
                    failed[key] = status
                    log.error("%s: ended with status %d", ", ".join(map(str, key)), status)
        if trainings.received:
            raise Stopped(trainings.received, "stopped; the same command continues")
        return failed

    def as_markdown(self) -> str:
        """The table so far, with notes."""
        table = as_markdown(ablation_table(self.results, PUBLISHED))
        return "\n".join([table, "", *(f"* {note}" for note in (machine(), *NOTES)), ""])

    def _started(self, keys: Sequence[Key]) -> Iterator[tuple[Key, list[str]]]:
        for number, key in enumerate(keys, start=1):
            log.info("%s, world %s, seed %d: training %d of %d", *key, number, len(keys))
            words = self._flags[key.configuration, key.world]
            yield key, [*words, "--seed", str(key.seed), "--description", f"seed{key.seed}"]

    def _read(self, key: Key) -> bool:
        """Whether the run is finished; its result is kept. InputError if it has other options."""
        options = self._options[key.configuration, key.world]
        options = EasyDict({**options, "seed": key.seed, "description": f"seed{key.seed}"})
        name = run_name(options)
        try:
            path, is_finished = find_run(name, plain(options))
        except InputError as error:
            raise InputError(f"{name.parent / options.description}: {error}; choose another --out") from error
        if path is not None and is_finished:
            self._results[key] = read_result(path)
        return is_finished


def _checked(name: str, world: str, flags: Sequence[str]) -> EasyDict:
    try:
        return read_options(flags)
    except InputError as error:
        raise InputError(f"{name}, world {world}: {error}") from error


if __name__ == "__main__":
    run_command(main)
