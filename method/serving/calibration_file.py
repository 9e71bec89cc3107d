"""The calibration that is stored with an index."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from method.runtime.errors import InputError
from method.runtime.files import read_json, write_json
from method.serving.calibration import Bin, Calibration, Confidence, ScoreScale

log = logging.getLogger(__name__)

VERSION = 1
COMMAND = "python utils/calibrate_search.py"
_MAX_BYTES = 1 << 24


def calibration_path(index: Path) -> Path:
    """The file of the calibration of the index at a path."""
    return index.with_name(f"{index.stem}.calibration.json")


def save(index: Path, calibration: Calibration) -> None:
    """Store a calibration with the index at a path."""
    write_json(calibration_path(index), as_json(calibration))


def load(index: Path) -> Calibration | None:
    """The calibration of the index at a path, None without one. InputError for a file that is not one."""
    path = calibration_path(index)
    if not path.exists():
        return None
    try:
        return from_json(read_json(path, _MAX_BYTES))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: not a calibration ({error!r}); make it again with {COMMAND}") from error


def as_json(calibration: Calibration) -> dict[str, Any]:
    """A calibration as JSON values."""
    return {"version": VERSION, **asdict(calibration)}


def from_json(value: Any) -> Calibration:
    """Read what `as_json` returned. KeyError, TypeError or ValueError for values that are not a calibration."""
    if value["version"] != VERSION:
        raise ValueError(f"version {value['version']!r}, expected {VERSION}")
    curve = tuple((float(score), float(confidence)) for score, confidence in value["curve"])
    scores, rates = zip(*curve, strict=True)
    if not all(map(math.isfinite, scores)) or list(scores) != sorted(scores):
        raise ValueError("scores that do not ascend")
    if not all(0 <= rate <= 1 for rate in rates) or list(rates) != sorted(rates):
        raise ValueError("confidences that do not ascend from 0 to 1")
    return Calibration(
        scale=ScoreScale(**value["scale"]),
        dataset=str(value["dataset"]),
        videos=int(value["videos"]),
        queries=int(value["queries"]),
        curve=curve,
        reliability=tuple(Bin(**own) for own in value["reliability"]),
    )


def open_confidence(
    indexes: Sequence[Path], scale: ScoreScale, dataset: str, videos: int, minimum: float
) -> Confidence:
    """The calibration of the first index that has one for these scores.

    Args:
        indexes: the one that is searched, then others of the same model.
        scale: of the scores.
        dataset: that is searched.
        videos: number of its videos.
        minimum: confidence below which there is no confident match; 0: not judged.

    Raises:
        InputError: if a minimum is wanted and there is no such calibration.
    """
    reason = f"this search has no calibration; run {COMMAND} with its flags"
    for index in dict.fromkeys(indexes):
        try:
            calibration = load(index)
        except InputError as error:
            reason = str(error)
            log.warning("no confidence: %s", reason)
            continue
        if calibration is not None and calibration.scale == scale:
            return Confidence(calibration, minimum, calibration.note(dataset, videos))
        if calibration is not None:
            path = calibration_path(index)
            reason = f"{path} is of another checkpoint, fusion weight or precision; run {COMMAND} again"
            log.info("no confidence: %s", reason)
    if minimum:
        raise InputError(f"--min_confidence {minimum:g}: {reason}")
    return Confidence()
