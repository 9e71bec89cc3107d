"""What a report is written from; apart from the report itself, so that importing this does not load Matplotlib."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from method.data.splits import Split
from method.evaluation.moments import TrueMoment
from method.evaluation.ranking import Evaluation
from method.model.retrieval import RetrievalModel


@dataclass(frozen=True)
class ReportInput:
    """An evaluated model, and where it comes from.

    dataset: its name. epoch, checkpoint: of the model. moments: annotated moments by caption id, may be empty.
    """

    model: RetrievalModel
    evaluation: Evaluation
    split: Split
    dataset: str
    epoch: int
    checkpoint: Path
    moments: Mapping[str, TrueMoment]
