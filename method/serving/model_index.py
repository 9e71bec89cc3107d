"""The index of a checkpoint or of zero-shot CLIP: where it is, and what adds videos to it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from method.config.settings import EvaluationSettings
from method.data.dataset import FeatureReader
from method.evaluation.zero_shot import ZeroShot
from method.model.retrieval import RetrievalModel
from method.model.zero_shot import ZERO_SHOT
from method.runtime.processes import SINGLE_PROCESS, Processes
from method.serving.index.earlier import SUBFOLDER
from method.serving.index.encoding import VideoEncoder, fingerprint
from method.serving.index.index import Index


@dataclass(frozen=True)
class ModelIndex:
    """An index, and the encoder of its videos."""

    index: Index
    encoder: VideoEncoder


def index_folder(made_for: Path, folder: Path | None = None) -> Path:
    """`<file>.index/` beside a checkpoint or feature file, unless another folder is given."""
    return folder or made_for.with_name(f"{made_for.name}.index")


def checkpoint_index(
    model: RetrievalModel,
    sha256: str,
    reader: FeatureReader,
    checkpoint: Path,
    folder: Path | None,
    settings: EvaluationSettings,
    processes: Processes = SINGLE_PROCESS,
) -> ModelIndex:
    """The index of a checkpoint.

    Args:
        model: in evaluation mode, on the device that computes.
        sha256: digest of the checkpoint.
        reader: of the features.
        checkpoint: its file.
        folder: of the index; None: beside the checkpoint.
        settings: how videos are encoded.
        processes: that share the work.
    """
    return _index_of(model, sha256, reader, index_folder(checkpoint, folder), settings, processes)


def zero_shot_index(
    zero_shot: ZeroShot, folder: Path | None, settings: EvaluationSettings, processes: Processes = SINGLE_PROCESS
) -> ModelIndex:
    """The index of zero-shot CLIP; as `checkpoint_index`, beside the features."""
    reader = zero_shot.reader
    path = index_folder(reader.videos.path, folder) / SUBFOLDER
    return _index_of(zero_shot.model, ZERO_SHOT, reader, path, settings, processes)


def _index_of(
    model: RetrievalModel,
    checkpoint: str,
    reader: FeatureReader,
    folder: Path,
    settings: EvaluationSettings,
    processes: Processes,
) -> ModelIndex:
    encoder = VideoEncoder(model, reader, settings.precision, settings.workers, processes, settings.video_batch)
    return ModelIndex(Index(folder, fingerprint(checkpoint, model.architecture, settings.precision)), encoder)
