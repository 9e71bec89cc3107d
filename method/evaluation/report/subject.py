"""What a report is about; apart from the report, so that naming one does not load the drawing library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from method.data.check import Split
from method.evaluation.moments import TrueMoment
from method.evaluation.ranking import Evaluation
from method.model.retrieval import RetrievalModel


@dataclass(frozen=True)
class Subject:
    """What a report is about.

    options: those of the call. epoch, checkpoint: where the model is from. moments: those that are known, by caption
    id; empty without any.
    """

    model: RetrievalModel
    evaluation: Evaluation
    split: Split
    options: Mapping[str, Any]
    epoch: int
    checkpoint: Path
    moments: Mapping[str, TrueMoment]
