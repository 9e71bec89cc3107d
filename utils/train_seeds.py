"""Train one configuration with several seeds, one after another, and print mean and standard deviation.

    SEEDS="1 2 3" bash do_charades.sh --resume auto
    python utils/train_seeds.py --seeds "1 2 3" -- --dataset_name charades --resume auto

The flags after -- are those of method/train.py. Each seed is a run with a folder of its own; with --description NAME
they are NAME_seed1, NAME_seed2 and so on. With --resume auto, a repeated command skips finished runs, continues an
unfinished one and starts the others.

Ctrl-C or SIGTERM stops the running training, which saves its state, and starts no further one: status 130 or 143. If a
seed fails, the others are trained all the same, and the status is that of the first failure.
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import method  # noqa: F401 (sets OpenMP variables before torch is imported)

from easydict import EasyDict

from method.config.options import plain, read_options
from method.config.parser import AUTO, Parser
from method.config.settings import run_name
from method.runtime.errors import InputError, PeerFailed, Stopped, run_command
from method.runtime.run_folder import log_to_terminal
from method.training.resume import finished_run, saved_options
from utils.runs.trainings import Trainings
from utils.summarize_runs import print_summary

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train with each seed and print the summary."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    place = words.index("--") if "--" in words else len(words)
    parser = Parser(
        description="Train one configuration with several seeds.",
        usage="train_seeds.py [--help] --seeds SEEDS [--nproc_per_node N] -- FLAGS OF method/train.py",
    )
    parser.add_argument("--seeds", type=seed_list, required=True, help="seeds, separated by spaces or commas")
    parser.add_argument("--nproc_per_node", type=int, metavar="N", help="processes of each training, by torchrun")
    own, flags = parser.parse_args(words[:place]), words[place + 1 :]
    options = training_options(flags)
    log_to_terminal()
    failed: dict[int, int] = {}
    trainings = Trainings(own.nproc_per_node)
    with trainings:
        for seed, status in trainings.run(_with_each(own.seeds, flags, options)):
            if trainings.received:
                at = f"stopped at seed {seed}"
                raise Stopped(trainings.received, f"{at}; the same command with --resume {AUTO} continues")
            if status:
                failed[seed] = status
                log.error("seed %d failed with status %d", seed, status)
    runs = [of_seed(options, seed) for seed in own.seeds]
    found = [finished_run(run_name(run), plain(run)) for run in runs]
    if finished := [path for path in found if path is not None]:
        print_summary(finished)
    if failed:
        names = ", ".join(str(seed) for seed in failed)
        raise PeerFailed(next(iter(failed.values())), f"error: {len(failed)} of {len(own.seeds)} seeds failed: {names}")


def _with_each(seeds: Sequence[int], flags: Sequence[str], options: EasyDict) -> Iterator[tuple[int, list[str]]]:
    """Each seed with the flags of its training, as it is started."""
    for number, seed in enumerate(seeds, start=1):
        log.info("seed %d, training %d of %d", seed, number, len(seeds))
        yield seed, [*flags, "--seed", str(seed), *name_flags(options, seed)]


def seed_list(text: str) -> list[int]:
    """Parse seeds. ArgumentTypeError for what are no whole numbers, and for repeated ones.

    >>> seed_list("1 2 3"), seed_list("7,8")
    ([1, 2, 3], [7, 8])
    """
    words = re.split(r"[\s,]+", text.strip())
    if not all(re.fullmatch(r"[0-9]{1,9}", word) for word in words) or len({*map(int, words)}) < len(words):
        raise argparse.ArgumentTypeError(f"expected different whole numbers, as in '1 2 3', found {text!r}")
    return [int(word) for word in words]


def training_options(flags: Sequence[str]) -> EasyDict:
    """The options of every seed. InputError for flags that are wrong, or make no sense with several seeds."""
    if any(flag.split("=")[0] == "--seed" for flag in flags):
        raise InputError("--seed: SEEDS (--seeds) chooses the seeds, expected one of them alone")
    if "--only_eval" in flags:
        raise InputError("--only_eval: several seeds are for trainings, expected SEEDS (--seeds) not to be set")
    options = read_options(flags, saved=saved_options)
    if options.resume not in (None, AUTO):
        raise InputError(f"--resume {options.resume or ''}: each seed has a run of its own, expected --resume {AUTO}")
    return options


def of_seed(options: EasyDict, seed: int) -> EasyDict:
    """The options of the run with a seed."""
    name = f"{options.description}_seed{seed}" if options.description else None
    return EasyDict({**options, "seed": seed, "description": name})


def name_flags(options: EasyDict, seed: int) -> list[str]:
    """The flags that name the run of a seed; without a description it is named by its start time."""
    name = of_seed(options, seed).description
    return ["--description", name] if name else []


if __name__ == "__main__":
    run_command(main)
