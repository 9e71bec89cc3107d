"""Which engine searches, as the command line names it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from method.evaluation.corpus import Corpus
from method.evaluation.scorer import ScoringSettings
from method.serving.engines import SearchEngine
from method.serving.engines.coarse import CoarseEngine
from method.serving.engines.exact import ExactEngine
from method.serving.engines.rescoring import Videos

ENGINES = ("exact", "coarse", "milvus")


@dataclass(frozen=True)
class EngineSettings:
    """Which engine.

    candidates: of the coarse engine. uri: of Milvus, the address or file. index: the kind that a new collection gets.
    """

    name: str = "exact"
    candidates: int = 1000
    uri: str | None = None
    index: str = "AUTOINDEX"


def open_engine(
    settings: EngineSettings,
    corpus: Corpus,
    scoring: ScoringSettings,
    device: torch.device,
    made_from: Mapping[str, str],
    rebuild: bool = False,
    rebuild_outdated: bool = False,
) -> SearchEngine:
    """Open an engine over the videos of a corpus. InputError as `CoarseEngine` and `open_milvus`.

    Args:
        settings: which one.
        corpus: the videos.
        scoring: how to score.
        device: where to compute.
        made_from: branch -> digest of what its embeddings depend on, apart from the features.
        rebuild: make what Milvus stores again. rebuild_outdated: if it was made from something else.
    """
    if settings.name == "exact":
        return ExactEngine(corpus, scoring, device)
    if settings.name == "coarse":
        return CoarseEngine(corpus, scoring, device, settings.candidates)
    from method.serving.engines.milvus import open_milvus

    assert settings.uri is not None
    videos = Videos(corpus, scoring, device)
    return open_milvus(settings.uri, settings.index, videos, made_from, rebuild, rebuild_outdated)
