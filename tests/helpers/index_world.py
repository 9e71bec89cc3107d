"""A dataset, a model and the index of its videos, and what a search of it gives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import h5py
import torch

from method.data.batch import Loader
from method.data.dataset import CorpusVideos, FeatureReader
from method.data.features import FeatureFile
from method.evaluation.corpus import Corpus, encode_corpus
from method.model.retrieval import RetrievalModel
from method.serving.engines import Ranking
from method.serving.engines.exact import ExactEngine
from method.serving.index.encoding import VideoEncoder, fingerprint
from method.serving.index.features import SingleVideos
from method.serving.index.index import Index
from method.serving.index.manifest import read_manifest
from method.serving.index.snapshot import Snapshot
from method.serving.model_index import index_folder
from tests.evaluation.corpora import settings_of
from tests.helpers.small_dataset import SmallDataset
from tests.helpers.small_models import SMALL, lively_model

CPU = torch.device("cpu")
QUERIES = {
    name: torch.nn.functional.normalize(
        torch.randn(5, SMALL.hidden_size, generator=torch.Generator().manual_seed(seed)), dim=-1
    )
    for seed, name in enumerate(("action", "object"))
}


class IndexWorld:
    """All names are those of the dataset: 12 videos T00..., of training, and 8 E00... that are evaluated."""

    def __init__(self, root: Path, model: RetrievalModel | None = None) -> None:
        self.data = SmallDataset(root)
        self.model = model or lively_model()
        self.folder = index_folder(root / "model.ckpt")
        self.video_ids = self.data.videos_of(self.data.test_txt)
        self.training = self.data.videos_of(self.data.train_txt)
        self.checkpoint = "a digest"
        self.precision = "off"
        self.batch_size = 3

    @property
    def reader(self) -> FeatureReader:
        a = self.model.architecture
        files = FeatureFile(self.data.features), FeatureFile(self.data.texts)
        return FeatureReader(*files, a.streams, a.query_width, a.max_frames, a.max_words)

    @property
    def index(self) -> Index:
        return Index(self.folder, fingerprint(self.checkpoint, self.model.architecture, self.precision))

    @property
    def encoder(self) -> CountingEncoder:
        return CountingEncoder(self.model, self.reader, self.precision, batch_size=self.batch_size)

    def update(self, *video_ids: str, rebuild: bool = False, named: Sequence[str] | None = None) -> Snapshot:
        """The index with these videos, by default the evaluated ones."""
        return self.index.update(self.encoder, list(video_ids) or self.video_ids, rebuild=rebuild, named=named)

    def encode(self, video_ids: Sequence[str] | None = None) -> Corpus:
        """The videos as the index encodes them."""
        ids = video_ids or self.video_ids
        videos = SingleVideos(self.reader, ids, 0, self.encoder.longest(ids))
        return encode_corpus(self.model, videos, CPU, self.precision)

    def evaluated(self, batch: int = 3) -> Corpus:
        """The videos as evaluation encodes them."""
        loader = Loader(CorpusVideos(self.reader, self.video_ids), batch, 0, pinned=False)
        return encode_corpus(self.model, loader, CPU, self.precision)

    def manifest(self) -> Any:
        manifest = read_manifest(self.folder)
        assert manifest is not None
        return manifest

    def segments(self) -> list[Path]:
        return sorted(self.folder.glob("segment-*.keys"))

    def change(self, *video_ids: str) -> None:
        """Change the features of these videos."""
        with h5py.File(self.data.features, "r+") as file:
            for video_id in video_ids:
                file[f"{video_id}/clip_feat"][0, 0] += 1

    def delete(self, *video_ids: str) -> None:
        """Remove these videos from the feature file."""
        with h5py.File(self.data.features, "r+") as file:
            for video_id in video_ids:
                del file[video_id]


class CountingEncoder(VideoEncoder):
    """Notes which videos have been encoded, since `encoded` was last emptied."""

    encoded: ClassVar[list[str]] = []

    def encode(self, video_ids: Sequence[str], longest: Any) -> Any:
        self.encoded.extend(video_ids)
        return super().encode(video_ids, longest)


def results_of(snapshot: Snapshot, video_ids: Sequence[str]) -> list[Ranking]:
    """What each query finds among these videos, all of them ranked, with their scores and best frames."""
    return corpus_results(snapshot.select(video_ids))


def corpus_results(corpus: Corpus) -> list[Ranking]:
    """The same for a corpus; the queries are searched one at a time and together, which changes nothing."""
    engine, count = ExactEngine(corpus, settings_of(0.3), CPU), len(corpus.video_ids)
    together = engine.search(QUERIES, count)
    alone = [engine.search({name: own[i : i + 1] for name, own in QUERIES.items()}, count) for i in range(5)]
    assert [ranking for (ranking,) in alone] == together
    return together
