"""The calibrations that an index holds in its manifest, one for each split that was searched to fit it."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from method.runtime.errors import InputError
from method.serving.calibration import Bin, Calibration, Confidence, ScoreScale
from method.serving.index.index import Index
from method.serving.index.manifest import read_manifest

log = logging.getLogger(__name__)

VERSION = 1
COMMAND = "python utils/index.py calibrate"

Stored = Mapping[str, Any]


def save(folder: Path, split: str, calibration: Calibration) -> None:
    """Store the calibration of a split in the index of a folder. InputError if there is none."""
    manifest = read_manifest(folder)
    if manifest is None:
        raise InputError(f"{folder}: no index there")
    Index(folder, manifest.made_from).calibrate({split: as_json(calibration)})


def load(stored: Stored | None, split: str) -> Calibration | None:
    """The calibration of a split, None without one. InputError for values that are not a calibration."""
    if stored is None or split not in stored:
        return None
    try:
        return from_json(stored[split])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"split {split}: not a calibration ({error!r}); make it again with {COMMAND}") from error


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
    stored: Stored | None, splits: Sequence[str], scale: ScoreScale, dataset: str, videos: int, minimum: float
) -> Confidence:
    """The calibration of the first split that has one for these scores.

    Args:
        stored: in the manifest of the index.
        splits: the one that is searched, then others.
        scale: of the scores.
        dataset: that is searched.
        videos: number of its videos.
        minimum: confidence below which there is no confident match; 0: not judged.

    Raises:
        InputError: if a minimum is wanted and there is no such calibration.
    """
    reason = f"this search has no calibration; run {COMMAND} with its flags"
    for split in dict.fromkeys(splits):
        try:
            calibration = load(stored, split)
        except InputError as error:
            reason = str(error)
            log.warning("no confidence: %s", reason)
            continue
        if calibration is not None and calibration.scale == scale:
            return Confidence(calibration, minimum, calibration.note(dataset, videos))
        if calibration is not None:
            reason = f"the calibration is of another checkpoint, fusion weight or precision; run {COMMAND} again"
            log.info("no confidence: %s", reason)
    if minimum:
        raise InputError(f"--min_confidence {minimum:g}: {reason}")
    return Confidence()
