"""Opening a search: the index, to which videos are added if they are missing, and the captions that can be queries."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from method.config.settings import EvaluationSettings, ZeroShotSettings
from method.data.captions import Caption
from method.data.dataset import FeatureReader
from method.data.dataset_files import DATA_FILES, DatasetFiles, open_features
from method.data.provenance import check_recipe
from method.evaluation.moments import durations, read_moments
from method.evaluation.scorer import ScoringSettings
from method.evaluation.zero_shot import open_zero_shot
from method.model.retrieval import RetrievalModel
from method.model.zero_shot import ZERO_SHOT
from method.runtime.errors import InputError
from method.runtime.files import digest_of
from method.serving.calibration import Confidence, ScoreScale
from method.serving.calibration_file import open_confidence
from method.serving.engines import SearchEngine
from method.serving.engines.choice import EngineSettings, open_engine
from method.serving.engines.verified import VerifiedEngine
from method.serving.index.earlier import SUBFOLDER
from method.serving.index.manifest import NAME as MANIFEST
from method.serving.index.segment import UnusableIndex
from method.serving.index.snapshot import Snapshot
from method.serving.model_index import ModelIndex, checkpoint_index, index_folder, zero_shot_index
from method.serving.queries import QueryEncoder
from method.serving.searcher import Searcher
from method.serving.selection import Selection, select_videos
from method.text.check import check_encoder
from method.text.encoder import EncoderSettings, TextEncoder, open_text_encoder

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """What is searched, and how.

    checkpoint: file of the model; None for zero-shot CLIP alone. split: videos to search, in `SPLITS` or `ALL`.
    index_dir: folder of the index, None for one beside the checkpoint or, for zero-shot CLIP, the features.
    rebuild: the index, even if there is one. rebuild_outdated: it, if it cannot be used.
    moments: file that durations are read from, if there. moments_per_video: at most so many are shown.
    min_confidence: of a confident match; 0: not judged. engine: what finds the videos.
    """

    checkpoint: Path | None
    zero_shot: ZeroShotSettings | None
    files: DatasetFiles
    split: str
    index_dir: Path | None
    rebuild: bool
    rebuild_outdated: bool
    moments: Path | None
    moments_per_video: int
    min_confidence: float
    evaluation: EvaluationSettings
    encoder: EncoderSettings
    engine: EngineSettings


def open_checkpoint_searcher(model: RetrievalModel, sha256: str, settings: SearchSettings) -> Searcher:
    """Open the search by a checkpoint, or by it and zero-shot CLIP; builds an index if there is none.

    Args:
        model: in evaluation mode, on the device that computes.
        sha256: digest of its checkpoint.
        settings: of the search.

    Raises:
        InputError: for files that are missing, broken or do not match.
    """
    files, checkpoint = settings.files, settings.checkpoint
    assert checkpoint is not None
    reader = open_features(files, model.architecture, DATA_FILES if files.has_captions else ["video_feat_path"])
    check_recipe(reader, files.recipe, checkpoint)
    videos = select_videos(files, settings.split, reader)
    index = checkpoint_index(model, sha256, reader, checkpoint, settings.index_dir, settings.evaluation)
    snapshots = [_open_index(index, videos, settings)]
    scoring, others = ScoringSettings.of(settings.evaluation, model), []
    made_from = _made_from(model, sha256, settings)
    if settings.zero_shot is not None:
        zero_shot = open_zero_shot(files, settings.zero_shot, model.device, ["video_feat_path"])
        index = zero_shot_index(zero_shot, settings.index_dir, settings.evaluation)
        snapshots.append(_open_index(index, videos, settings))
        scoring = scoring.with_branch(ZERO_SHOT, settings.zero_shot.weight)
        made_from |= _made_from(zero_shot.model, ZERO_SHOT, settings)
        others = [QueryEncoder(zero_shot.model, zero_shot.caption_reader, zero_shot.load_sentences)]
    name = sha256 if settings.zero_shot is None else f"{sha256} and {ZERO_SHOT}"
    scale = ScoreScale(name, dict(scoring.weights), scoring.precision)
    # The model's own dimensions, whatever the flags say.
    width, max_tokens = model.architecture.query_width, model.architecture.max_words
    encoder = replace(settings.encoder, width=width, max_tokens=max_tokens)
    engine = _open_engine(snapshots, videos, scoring, model.device, made_from, settings)
    return Searcher(
        model,
        engine,
        videos.captions,
        reader,
        partial(_open_encoder, encoder, model.device, reader, videos.captions),
        _durations(settings, snapshots[0], videos),
        scoring,
        settings.moments_per_video,
        others,
        settings.split,
        scale,
        _confidence(snapshots[0], scale, len(engine.video_ids), settings),
    )


def open_zero_shot_searcher(settings: SearchSettings, device: torch.device) -> Searcher:
    """Open the search by zero-shot CLIP alone; builds its index if there is none.

    InputError as `open_checkpoint_searcher`.
    """
    files = settings.files
    assert settings.zero_shot is not None
    needed = ["caption_test_txt", "caption_train_txt"] if files.has_captions else []
    zero_shot = open_zero_shot(files, settings.zero_shot, device, ["video_feat_path", *needed])
    videos = select_videos(files, settings.split, zero_shot.reader)
    index = zero_shot_index(zero_shot, settings.index_dir, settings.evaluation)
    snapshot = _open_index(index, videos, settings)
    scoring = ScoringSettings.of(settings.evaluation, zero_shot.model)
    scale = ScoreScale(ZERO_SHOT, dict(scoring.weights), scoring.precision)
    made_from = _made_from(zero_shot.model, ZERO_SHOT, settings)
    engine = _open_engine([snapshot], videos, scoring, device, made_from, settings)
    return Searcher(
        zero_shot.model,
        engine,
        videos.captions,
        zero_shot.caption_reader,
        zero_shot.load_sentences,
        _durations(settings, snapshot, videos),
        scoring,
        settings.moments_per_video,
        split=settings.split,
        scale=scale,
        confidence=_confidence(snapshot, scale, len(engine.video_ids), settings),
    )


def searched_folders(settings: SearchSettings) -> list[Path]:
    """The folders of the indexes that are searched, of the checkpoint and of zero-shot CLIP.

    The calibration that counts is in the first.
    """
    folders = []
    if settings.checkpoint is not None:
        folders.append(index_folder(settings.checkpoint, settings.index_dir))
    if settings.zero_shot is not None:
        features = settings.files.video_feat_path
        assert features is not None
        folders.append(index_folder(features, settings.index_dir) / SUBFOLDER)
    return folders


def generation_of(settings: SearchSettings) -> object:
    """Another value whenever an index or its calibration has changed; None if one is missing."""
    try:
        found = [(folder / MANIFEST).stat() for folder in searched_folders(settings)]
    except OSError:
        return None
    return [(status.st_ino, status.st_mtime_ns, status.st_size) for status in found]


def _confidence(snapshot: Snapshot, scale: ScoreScale, videos: int, settings: SearchSettings) -> Confidence:
    stored, splits, dataset = snapshot.manifest.calibration, [settings.split, "test"], settings.files.dataset
    return open_confidence(stored, splits, scale, dataset, videos, settings.min_confidence)


def _open_index(own: ModelIndex, videos: Selection, settings: SearchSettings) -> Snapshot:
    """An index with the videos as their features are now: those that are missing or differ are encoded."""
    try:
        return own.index.update(own.encoder, videos.ids, rebuild=settings.rebuild)
    except UnusableIndex as error:
        if not settings.rebuild_outdated:
            raise
        log.info("rebuilding the index: %s", error.reason)
    return own.index.update(own.encoder, videos.ids, rebuild=True)


def _open_engine(
    snapshots: Sequence[Snapshot],
    videos: Selection,
    scoring: ScoringSettings,
    device: torch.device,
    made_from: Mapping[str, str],
    settings: SearchSettings,
) -> SearchEngine:
    """What searches the videos that are in all of these indexes. InputError if there are none."""
    ids = [video_id for video_id in videos.ids if all(video_id in snapshot.places for snapshot in snapshots)]
    if not ids:
        raise InputError(f"{snapshots[0].folder}: all {len(videos.ids)} videos have been removed from the index")
    if len(ids) < len(videos.ids):
        log.info("%d videos are not searched: they have been removed from the index", len(videos.ids) - len(ids))
    corpus, *others = (snapshot.select(ids) for snapshot in snapshots)
    for other in others:
        corpus = corpus.joined(other)
    if settings.engine.name == "milvus":  # copies the keys at once
        for snapshot in snapshots:
            snapshot.verify(ids)
    engine = open_engine(
        settings.engine, corpus, scoring, device, made_from, settings.rebuild, settings.rebuild_outdated
    )
    return VerifiedEngine(engine, snapshots)


def _made_from(model: RetrievalModel, digest: str, settings: SearchSettings) -> dict[str, str]:
    """Branch -> digest of what its embeddings depend on, apart from the features."""
    own = digest_of([digest, model.architecture.as_dict(), settings.evaluation.precision])
    return dict.fromkeys(model.branches, own)


def _durations(settings: SearchSettings, snapshot: Snapshot, videos: Selection) -> dict[str, float]:
    """Seconds of videos, as far as known; without them, moments are shown in frames."""
    moments = None
    if settings.moments and settings.moments.exists():
        moments = read_moments(settings.moments, {caption.id for caption in videos.captions})
    return {**snapshot.durations, **durations(videos.captions, moments or {})}


def _open_encoder(
    settings: EncoderSettings, device: torch.device, reader: FeatureReader, captions: Sequence[Caption]
) -> TextEncoder:
    """Load the text encoder; warn if it does not reproduce the dataset's token features, where it has some."""
    encoder = open_text_encoder(settings, device)
    if captions:
        fits, line = check_encoder(encoder, reader, captions)
        if not fits:
            log.warning("%s", line)
    return encoder
