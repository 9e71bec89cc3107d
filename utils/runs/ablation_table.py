"""The table of an ablation: SumR of configurations over seeds, and paired differences from the baseline."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from method.evaluation.metrics import FUSED
from method.runtime.errors import InputError
from method.runtime.files import read_json, read_text
from method.runtime.run_folder import METRICS
from utils.runs.tables import Table

ALL = "all"  # worlds together
_EPOCH = re.compile(r"epoch (\d+): loss .*\(training ([\d.]+) s, evaluation")  # a line of train.log


class Key(NamedTuple):
    """One run of an ablation."""

    configuration: str
    world: str
    seed: int


@dataclass(frozen=True)
class Result:
    """SumR of a run by score, the fused one included, and the minutes that its epochs were trained."""

    sumr: Mapping[str, float]
    minutes: float


def read_result(run: Path) -> Result:
    """The result of a finished run. InputError if its files are not those of one."""
    metrics = read_json(run / METRICS)
    try:
        sumr = {name: float(own["sumr"]) for name, own in metrics.items() if isinstance(own, dict) and "sumr" in own}
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(f"{run / METRICS}: not the metrics of a run ({error})") from error
    if FUSED not in sumr:
        raise InputError(f"{run / METRICS}: not the metrics of a run (no {FUSED})")
    # Of an epoch that was repeated after an interruption the last line counts.
    seconds = dict(_EPOCH.findall(read_text(run / "train.log")))
    return Result(sumr, sum(map(float, seconds.values())) / 60)


def ablation_table(results: Mapping[Key, Result], baseline: str) -> Table:
    """A row for each configuration in each world, and over all worlds if there are several.

    Only runs of the same world and seed are compared: the difference is the mean of their differences in fused SumR,
    with its standard error; the time is that of training them, relative to the baseline.
    """
    scores = list(dict.fromkeys(score for result in results.values() for score in result.sumr if score != FUSED))
    worlds = list(dict.fromkeys(key.world for key in results))
    rows = []
    for name in dict.fromkeys(key.configuration for key in results):
        own = {key: result for key, result in results.items() if key.configuration == name}
        for world in worlds:
            if part := {key: result for key, result in own.items() if key.world == world}:
                rows.append([name, world, *_cells(part, results, baseline, scores)])
        if len(worlds) > 1:
            rows.append([name, ALL, *_cells(own, results, baseline, scores)])
    header = ["configuration", "world", "runs", "SumR", *scores, f"more than {baseline}", "time"]
    return Table(header, rows, left=(0, 1))


def _cells(
    own: Mapping[Key, Result], results: Mapping[Key, Result], baseline: str, scores: Sequence[str]
) -> list[object]:
    others = {key: results.get(key._replace(configuration=baseline)) for key in own}
    pairs = [(result, others[key]) for key, result in own.items() if others[key] is not None]
    difference, time = "–", "–"
    if pairs and baseline not in {key.configuration for key in own}:
        difference = with_error([one.sumr[FUSED] - other.sumr[FUSED] for one, other in pairs if other])
        if minutes := sum(other.minutes for _, other in pairs if other):  # 0 for epochs that round to 0.0 s
            time = f"{sum(one.minutes for one, _ in pairs) / minutes:.2f}"
    spread = [result.sumr[FUSED] for result in own.values()]
    one_world = len({key.world for key in own}) == 1
    deviation = f" ± {statistics.stdev(spread):.1f}" if len(spread) > 1 and one_world else ""
    means = [_mean(result.sumr.get(score) for result in own.values()) for score in scores]
    return [len(own), f"{statistics.fmean(spread):.1f}{deviation}", *means, difference, time]


def _mean(values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.fmean(known):.1f}" if known else "–"


def with_error(differences: Sequence[float]) -> str:
    """The mean and its standard error, the sample's standard deviation over the root of the number of values.

    >>> with_error([1.0, 3.0]), with_error([-0.5])
    ('+2.0 ± 1.0', '-0.5')
    """
    mean = f"{statistics.fmean(differences):+.1f}"
    if len(differences) < 2:
        return mean
    return f"{mean} ± {statistics.stdev(differences) / len(differences) ** 0.5:.1f}"
