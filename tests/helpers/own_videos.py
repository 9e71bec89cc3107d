"""Features of a few own videos, sentences about them, a small text encoder, and a tagger that knows their words."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from tests.helpers.small_dataset import NOUNS, VERBS, WIDTHS
from tests.helpers.tiny_text_encoder import make_text_encoder
from utils.captions.dataset import CaptionSettings
from utils.captions.tagger import TaggedWord

NAME = "mine"
SECONDS = 20.0
SENTENCES = [f"A person {verb} the {noun}." for verb in VERBS for noun in NOUNS]
_READINGS = {**dict.fromkeys(VERBS, ("VERB", "VBZ")), **dict.fromkeys((*NOUNS, "person"), ("NOUN", "NN"))}


class OwnVideos:
    """16 videos in two folders below `root`, with features as `utils/extract_features.py` lays them out."""

    def __init__(self, root: Path, encoder: Path | None = None) -> None:
        self.root = root
        self.folder = root / "dataset" / f"{NAME}_i3d"
        self.features = self.folder / "FeatureData" / f"{NAME}_clip_i3d_numpy.hdf5"
        self.encoder = encoder or make_text_encoder(root / "checkpoints" / "roberta-large", SENTENCES)
        self.ids = [f"day {number % 2}/clip {number:02}" for number in range(16)]
        self.features.parent.mkdir(parents=True)
        random = np.random.default_rng(0)
        with h5py.File(self.features, "w") as file:
            for number, video_id in enumerate(self.ids):
                for key, width in WIDTHS.items():
                    file[f"{video_id}/{key}"] = random.standard_normal((6 + number % 3, width), np.float32)
                file[video_id].attrs["duration"] = SECONDS

    def write_table(self, rows: Iterable[Sequence[Any]] | None = None, columns: str = "video,sentence") -> Path:
        """Write sentences.csv; without rows, two sentences for each video."""
        if rows is None:
            rows = [(own, SENTENCES[2 * i + k]) for i, own in enumerate(self.ids) for k in range(2)]
        with (self.root / "sentences.csv").open("w", newline="") as file:
            csv.writer(file).writerows([columns.split(","), *rows])
        return self.root / "sentences.csv"

    def settings(self, **changes: Any) -> CaptionSettings:
        given = {"table": self.root / "sentences.csv", "encoder": self.encoder, **changes}
        return CaptionSettings(name=NAME, root=self.root, device=torch.device("cpu"), **given)

    def text_files(self) -> dict[str, bytes]:
        """The content of every file of the sentences and of the YAML file."""
        paths = [path for path in self.folder.rglob("*") if path.is_file() and ".captions.lock" not in path.name]
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in paths if path != self.features}


def fake_tagger(sentences: Iterable[str]) -> Iterator[Sequence[TaggedWord]]:
    """Tags the words of SENTENCES, and knows no others."""
    for sentence in sentences:
        words = sentence.replace(".", " .").split()
        yield [TaggedWord(word, *_READINGS.get(word.lower(), ("X", "XX"))) for word in words]
