"""Opening a search: the index of the videos, which is built if missing, and the captions that can be queries."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from method.config.settings import EvaluationSettings, ZeroShotSettings
from method.data.batch import Loader
from method.data.captions import Caption, group_by_video, read_captions
from method.data.dataset import CorpusVideos, FeatureReader
from method.data.dataset_files import DATA_FILES, DatasetFiles, open_features
from method.data.provenance import check_recipe, list_videos, read_durations
from method.evaluation.corpus import Corpus, encode_corpus
from method.evaluation.moments import durations, read_moments
from method.evaluation.scorer import ScoringSettings
from method.evaluation.zero_shot import ZeroShot, open_zero_shot
from method.model.retrieval import RetrievalModel
from method.model.zero_shot import ZERO_SHOT
from method.runtime.errors import InputError
from method.runtime.files import digest_of
from method.serving.engines import SearchEngine
from method.serving.engines.choice import EngineSettings, open_engine
from method.serving.index import fingerprint, index_path, open_index
from method.serving.queries import QueryEncoder
from method.serving.searcher import Searcher
from method.text.check import check_encoder
from method.text.encoder import EncoderSettings, TextEncoder, open_text_encoder

log = logging.getLogger(__name__)

ALL = "all"  # videos of the feature file, with captions or without
SPLITS = {"test": ("test",), "train": ("train",), "both": ("test", "train")}


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """What is searched, and how.

    checkpoint: file of the model; None for zero-shot CLIP alone. split: videos to search, in `SPLITS` or `ALL`.
    index_dir: folder of the index, None for one beside the checkpoint or, for zero-shot CLIP, the features.
    rebuild: the index, even if there is one. rebuild_outdated: it, if it is outdated.
    moments: file that durations are read from, if there. moments_per_video: at most so many are shown.
    engine: what finds the videos.
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
    evaluation: EvaluationSettings
    encoder: EncoderSettings
    engine: EngineSettings

    def open_engine(
        self, corpus: Corpus, scoring: ScoringSettings, device: torch.device, made_from: Mapping[str, str]
    ) -> SearchEngine:
        """The engine over these videos; `made_from`: see `method.serving.engines.choice.open_engine`."""
        return open_engine(self.engine, [corpus], scoring, device, made_from, self.rebuild, self.rebuild_outdated)


def choose_split(files: DatasetFiles, asked: str | None) -> str:
    """The split to search: the one asked for, or else the evaluated one, or all videos of a dataset without captions.

    InputError for a split of a dataset without captions.
    """
    if asked not in (None, ALL) and not files.has_captions:
        raise InputError(f"--split {asked}: dataset {files.dataset} has no captions, expected {ALL}")
    return asked or ("test" if files.has_captions else ALL)


@dataclass(frozen=True)
class _Videos:
    """The videos that are searched, in order, and the captions of the dataset."""

    ids: list[str]
    captions: list[Caption]


def open_searcher(model: RetrievalModel, sha256: str, settings: SearchSettings) -> Searcher:
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
    videos = _select(settings, reader)
    index = index_path(checkpoint, settings.split, settings.index_dir)
    corpus = _open_corpus(model, reader, videos, index, sha256, settings)
    scoring, others = ScoringSettings.of(settings.evaluation, model), []
    made_from = _made_from(model, sha256, settings)
    if settings.zero_shot is not None:
        zero_shot = open_zero_shot(files, settings.zero_shot, model.device, ["video_feat_path"])
        corpus = corpus.joined(_open_zero_shot_corpus(zero_shot, videos, settings))
        scoring = scoring.with_branch(ZERO_SHOT, settings.zero_shot.weight)
        made_from |= _made_from(zero_shot.model, ZERO_SHOT, settings)
        others = [QueryEncoder(zero_shot.model, zero_shot.caption_reader, zero_shot.load_sentences)]
    # The model's own dimensions, whatever the flags say.
    width, max_tokens = model.architecture.query_width, model.architecture.max_words
    encoder = replace(settings.encoder, width=width, max_tokens=max_tokens)
    return Searcher(
        model,
        settings.open_engine(corpus, scoring, model.device, made_from),
        videos.captions,
        reader,
        partial(_open_encoder, encoder, model.device, reader, videos.captions),
        _durations(settings, reader, videos),
        scoring,
        settings.moments_per_video,
        others,
    )


def open_zero_shot_searcher(settings: SearchSettings, device: torch.device) -> Searcher:
    """Open the search by zero-shot CLIP alone; builds its index if there is none. InputError as `open_searcher`."""
    files = settings.files
    assert settings.zero_shot is not None
    needed = ["caption_test_txt", "caption_train_txt"] if files.has_captions else []
    zero_shot = open_zero_shot(files, settings.zero_shot, device, ["video_feat_path", *needed])
    videos = _select(settings, zero_shot.reader)
    corpus = _open_zero_shot_corpus(zero_shot, videos, settings)
    scoring = ScoringSettings.of(settings.evaluation, zero_shot.model)
    return Searcher(
        zero_shot.model,
        settings.open_engine(corpus, scoring, device, _made_from(zero_shot.model, ZERO_SHOT, settings)),
        videos.captions,
        zero_shot.caption_reader,
        zero_shot.load_sentences,
        _durations(settings, zero_shot.reader, videos),
        scoring,
        settings.moments_per_video,
    )


def _select(settings: SearchSettings, reader: FeatureReader) -> _Videos:
    files = settings.files
    paths = {"test": files.caption_test_txt, "train": files.caption_train_txt}
    captions = {split: read_captions(path) for split, path in paths.items() if path is not None}
    if settings.split == ALL:
        video_ids = list_videos(reader.videos.path, [key for key, _ in reader.streams.values()])
    else:
        video_ids = list(group_by_video([caption for split in SPLITS[settings.split] for caption in captions[split]]))
    return _Videos(video_ids, [*{caption.id: caption for own in captions.values() for caption in own}.values()])


def _open_corpus(
    model: RetrievalModel, reader: FeatureReader, videos: _Videos, index: Path, sha256: str, settings: SearchSettings
) -> Corpus:
    """The videos as a model encodes them, from its index, which is built if there is none."""
    evaluation = settings.evaluation
    loader = Loader(CorpusVideos(reader, videos.ids), evaluation.video_batch, evaluation.workers, pinned=False)
    return open_index(
        index,
        fingerprint(sha256, model.architecture, reader, videos.ids, evaluation.video_batch, evaluation.precision),
        partial(encode_corpus, model, loader, model.device, evaluation.precision),
        settings.rebuild,
        settings.rebuild_outdated,
    )


def _open_zero_shot_corpus(zero_shot: ZeroShot, videos: _Videos, settings: SearchSettings) -> Corpus:
    reader = zero_shot.reader
    index = index_path(reader.videos.path, f"{ZERO_SHOT}_{settings.split}", settings.index_dir)
    return _open_corpus(zero_shot.model, reader, videos, index, ZERO_SHOT, settings)


def _made_from(model: RetrievalModel, digest: str, settings: SearchSettings) -> dict[str, str]:
    """Branch -> digest of what its embeddings depend on, apart from the features."""
    own = digest_of([digest, model.architecture.as_dict(), settings.evaluation.precision])
    return dict.fromkeys(model.branches, own)


def _durations(settings: SearchSettings, reader: FeatureReader, videos: _Videos) -> dict[str, float]:
    """Seconds of videos, as far as known; without them, moments are shown in frames."""
    moments = None
    if settings.moments and settings.moments.exists():
        moments = read_moments(settings.moments, {caption.id for caption in videos.captions})
    return {**read_durations(reader.videos.path, videos.ids), **durations(videos.captions, moments or {})}


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
