"""Zero-shot CLIP on the features of a dataset: its model, and what embeds sentences for it.

It sees what every model sees of `clip_feat`: the rows of the feature file, averaged to at most `max_frames`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from method.config.settings import ZeroShotSettings
from method.data.captions import Caption
from method.data.dataset import FeatureReader
from method.data.dataset_files import DatasetFiles, check_files
from method.data.features import OBJECT_KEY, FeatureFile
from method.data.provenance import read_description, stream_width
from method.data.splits import Split
from method.model.zero_shot import ZeroShotModel
from method.runtime.errors import InputError
from method.runtime.files import sha256
from method.runtime.pretrained import clip_digest
from method.text.clip_sentences import ClipSentences, clip_width, keep_sentence_features, sentence_weights


@dataclass(frozen=True)
class ZeroShot:
    """Zero-shot CLIP on a feature file.

    model: on the device that computes. reader: of the frames; of sentences where a text feature file is named.
    """

    model: ZeroShotModel
    reader: FeatureReader
    settings: ZeroShotSettings

    @property
    def caption_reader(self) -> FeatureReader | None:
        """The reader, where a text feature file is named; None: captions are embedded as sentences are."""
        return self.reader if self.settings.text else None

    def load_sentences(self) -> ClipSentences:
        """Load the text tower of CLIP. InputError if it is missing, or another than that of the frames."""
        encoder = ClipSentences(self.settings.encoder, self.model.device)
        _check_weights(self.reader.videos.path, clip_digest(encoder.folder), encoder.folder)
        return encoder

    def with_captions(self, captions: Sequence[Caption], beside: Path, is_first: bool) -> ZeroShot:
        """The same with a text feature file of all these captions, which is made by CLIP if there is none.

        Args:
            captions: to be evaluated.
            beside: their file; the text feature file is made beside it unless the settings name one.
            is_first: whether this process makes the file.
        """
        path = self.settings.text or beside.with_name(f"{beside.name}.clip.hdf5")
        if is_first:
            keep_sentence_features(path, captions, self.settings.encoder, self.model.device)
        return replace(self, reader=replace(self.reader, texts=FeatureFile(path)))

    def check_captions(self, split: Split) -> None:
        """InputError unless the text feature file has one embedding a caption, of the CLIP that embedded the frames."""
        path = self.reader.texts.path
        wrong = next((caption_id for caption_id, rows in split.tokens.items() if rows != 1), None)
        if wrong is not None:
            raise InputError(
                f"{path}: {wrong!r} has {split.tokens[wrong]} rows, expected one embedding by CLIP of the sentence; "
                "these are features of tokens (--zero_shot_text)"
            )
        if (weights := sentence_weights(path)) is not None:
            _check_weights(self.reader.videos.path, weights, path)

    @property
    def source(self) -> tuple[Path, str]:
        """What embeds the sentences, for the record: the file or folder, and the SHA-256 of the file or weights."""
        folder, path = self.settings.encoder, self.reader.texts.path
        is_clip = self.settings.text is None or sentence_weights(path) is not None
        if is_clip and folder.exists():
            return folder, clip_digest(folder)
        return path, sha256(path)


def open_zero_shot(
    files: DatasetFiles, settings: ZeroShotSettings, device: torch.device, needed: Sequence[str]
) -> ZeroShot:
    """Open the features of a dataset for zero-shot CLIP.

    InputError naming every missing file of `needed`, without frames by CLIP, and for those of a CLIP of another width
    than the one that embeds sentences.
    """
    check_files({name: getattr(files, name) for name in needed}, files.dataset, files.root)
    features = files.video_feat_path
    assert features is not None
    width = stream_width(features, OBJECT_KEY)
    if settings.encoder.is_dir() and (expected := clip_width(settings.encoder)) != width:
        raise InputError(
            f"{features}: {OBJECT_KEY} is {width} wide, and {settings.encoder} embeds sentences in {expected} numbers: "
            "not features of this CLIP, which zero-shot search needs"
        )
    model = ZeroShotModel(width, settings.max_frames).eval().to(device)
    shape = model.architecture
    videos, texts = FeatureFile(features), FeatureFile(settings.text or features)
    reader = FeatureReader(videos, texts, shape.streams, shape.query_width, shape.max_frames, shape.max_words)
    return ZeroShot(model, reader, settings)


def _check_weights(features: Path, weights: str, source: Path) -> None:
    """InputError if the feature file says that another CLIP made its frames than the one with these weights."""
    description = read_description(features)
    made = description["streams"].get(OBJECT_KEY) if description else None
    if made and made["weights_sha256"] != weights:
        raise InputError(
            f"{features}: {OBJECT_KEY} was made by a CLIP with other weights (SHA-256 {made['weights_sha256'][:12]}...)"
            f" than {source} ({weights[:12]}...), so that frames and sentences cannot be compared"
        )
