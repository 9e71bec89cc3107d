"""Opening a search: the index of the videos, which is built if missing, and the captions that can be queries."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from method.config.settings import EvaluationSettings
from method.data.batch import Loader
from method.data.captions import Caption, group_by_video, read_captions
from method.data.dataset import CorpusVideos, FeatureReader
from method.data.dataset_files import DATA_FILES, DatasetFiles, open_features
from method.data.provenance import check_recipe, list_videos, read_durations
from method.evaluation.corpus import encode_corpus
from method.evaluation.moments import durations, read_moments
from method.evaluation.scorer import ScoringSettings
from method.model.retrieval import RetrievalModel
from method.runtime.errors import InputError
from method.serving.index import fingerprint, index_path, open_index
from method.serving.searcher import Searcher
from method.text.check import check_encoder
from method.text.encoder import EncoderSettings, TextEncoder, open_text_encoder

log = logging.getLogger(__name__)

ALL = "all"  # videos of the feature file, with captions or without
SPLITS = {"test": ("test",), "train": ("train",), "both": ("test", "train")}


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """What is searched, and how.

    checkpoint: file of the model. split: videos to search, a name in `SPLITS` or `ALL`.
    index_dir: folder of the index, None for one beside the checkpoint. rebuild: the index, even if there is one.
    moments: file that durations are read from, if there. moments_per_video: at most so many are shown.
    """

    checkpoint: Path
    files: DatasetFiles
    split: str
    index_dir: Path | None
    rebuild: bool
    moments: Path | None
    moments_per_video: int
    evaluation: EvaluationSettings
    encoder: EncoderSettings


def choose_split(files: DatasetFiles, asked: str | None) -> str:
    """The split to search: the one asked for, or else the evaluated one, or all videos of a dataset without captions.

    InputError for a split of a dataset without captions.
    """
    if asked not in (None, ALL) and not files.has_captions:
        raise InputError(f"--split {asked}: dataset {files.dataset} has no captions, expected {ALL}")
    return asked or ("test" if files.has_captions else ALL)


def open_searcher(model: RetrievalModel, sha256: str, settings: SearchSettings) -> Searcher:
    """Read the index of the videos, and build it if there is none.

    Args:
        model: in evaluation mode, on the device that computes.
        sha256: digest of its checkpoint.
        settings: of the search.

    Raises:
        InputError: for files that are missing, broken or do not match.
    """
    evaluation, device = settings.evaluation, next(model.parameters()).device
    files = settings.files
    reader = open_features(files, model.architecture, DATA_FILES if files.has_captions else ["video_feat_path"])
    check_recipe(reader, files.recipe, settings.checkpoint)
    paths = {"test": files.caption_test_txt, "train": files.caption_train_txt}
    captions = {split: read_captions(path) for split, path in paths.items() if path is not None}
    if settings.split == ALL:
        video_ids = list_videos(reader.videos.path, [key for key, _ in reader.streams.values()])
    else:
        video_ids = list(group_by_video([caption for split in SPLITS[settings.split] for caption in captions[split]]))
    videos = Loader(CorpusVideos(reader, video_ids), evaluation.video_batch, evaluation.workers, pinned=False)
    corpus = open_index(
        index_path(settings.checkpoint, settings.split, settings.index_dir),
        fingerprint(sha256, model.architecture, reader, video_ids, evaluation.video_batch, evaluation.precision),
        partial(encode_corpus, model, videos, device, evaluation.precision),
        settings.rebuild,
    )
    known = [*{caption.id: caption for own in captions.values() for caption in own}.values()]
    moments = None
    if settings.moments and settings.moments.exists():  # without them, moments are shown in frames, not in seconds
        moments = read_moments(settings.moments, {caption.id for caption in known})
    # The model's own dimensions, whatever the flags say.
    width, max_tokens = model.architecture.query_width, model.architecture.max_words
    encoder = replace(settings.encoder, width=width, max_tokens=max_tokens)
    return Searcher(
        model,
        corpus,
        known,
        reader,
        partial(_open_encoder, encoder, device, reader, known),
        {**read_durations(reader.videos.path, video_ids), **durations(known, moments or {})},
        ScoringSettings.of(evaluation, model),
        settings.moments_per_video,
    )


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
