"""Videos encoded for an index, each by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from method.data.dataset import FeatureReader
from method.data.provenance import read_durations
from method.evaluation.corpus import encode_corpus
from method.model.architecture import Architecture
from method.model.retrieval import RetrievalModel
from method.runtime.errors import InputError
from method.runtime.files import digest_of
from method.runtime.processes import SINGLE_PROCESS, Processes
from method.serving.index.features import Longest, SingleVideos, batch_lengths, features_state
from method.serving.index.manifest import FeatureState, MadeFrom
from method.serving.index.segment import EncodedVideos


def fingerprint(checkpoint: str, architecture: Architecture, precision: str = "off") -> MadeFrom:
    """What the embeddings of a video depend on beside its features, by the names under which a change is reported.

    Args:
        checkpoint: digest of its file.
        architecture: of the model; a published checkpoint does not contain it.
        precision: of the encoders and of the stored embeddings.
    """
    made_from = {"checkpoint": checkpoint, "model options": digest_of(architecture.as_dict())}
    return made_from if precision == "off" else {**made_from, "--eval_amp": precision}


@dataclass(frozen=True)
class VideoEncoder:
    """Encodes videos for an index.

    model: in evaluation mode, on the device that computes. reader: of the features. precision: of encoders and
    embeddings. workers: data workers. processes: that share the work.
    batch_size: of evaluation. Where fusion reads past the end of a video (extent 'padded'), it reads up to the length
    of the longest video of a batch; the index reads as far as evaluation does in batches of this size.
    """

    model: RetrievalModel
    reader: FeatureReader
    precision: str = "off"
    workers: int = 0
    processes: Processes = SINGLE_PROCESS
    batch_size: int = 1

    def longest(self, video_ids: Sequence[str]) -> dict[str, Longest]:
        """How far fusion reads past the end of each of the videos that are searched; empty if it does not."""
        a = self.model.architecture
        if a.fusion != "deformable" or a.fusion_extent != "padded":
            return {}
        return batch_lengths(self.reader, video_ids, self.batch_size)

    def encode(self, video_ids: Sequence[str], longest: Mapping[str, Longest]) -> tuple[EncodedVideos, FeatureState]:
        """Encode videos; returns the state of their features, too. InputError for features that are unusable."""
        for key, width in self.reader.streams.values():
            self.reader.videos.check([f"{video_id}/{key}" for video_id in video_ids], width)
        videos = SingleVideos(self.reader, video_ids, self.workers, longest)
        corpus = encode_corpus(self.model, videos, self.model.device, self.precision)
        state = features_state(self.reader, video_ids)
        if self.reader.videos.has_changed():
            raise InputError(f"{self.reader.videos.path}: modified while it was being read")
        known = read_durations(self.reader.videos.path, video_ids)
        durations = [known.get(video_id) for video_id in video_ids]
        digests = [own + suffix(longest.get(video_id)) for own, video_id in zip(videos.digests, video_ids, strict=True)]
        return EncodedVideos(corpus.to(torch.device("cpu")), digests, durations), state


def suffix(longest: Longest | None) -> str:
    """How far fusion has read past the end of a video, as it is appended to the digest of the features.

    >>> suffix({"object": 9, "action": 12}), suffix(None)
    ('/action 12/object 9', '')
    """
    return "".join(f"/{branch} {length}" for branch, length in sorted((longest or {}).items()))
