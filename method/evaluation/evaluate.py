"""Evaluate a model on a split: the one path of training, `--only_eval` and `evaluate.py`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from method.data.batch import QueryBatch, VideoBatch
from method.errors import InputError
from method.evaluation.corpus import Corpus, QuerySet, Scorer, encode_corpus, encode_queries
from method.evaluation.metrics import Ranks, check_finite, ranks_of, retrieval_metrics
from method.model.retrieval import RetrievalModel

Scores = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    corpus, queries: the videos and the captions as they were encoded, on the device of the model.
    ranks: score name -> rank of each caption's video, in the order of the captions. Score names are the branches that
    are on, and 'fused'.
    scores: score name -> (Q, V) float32, only if asked for.
    """

    corpus: Corpus
    queries: QuerySet
    ranks: dict[str, Ranks]
    scores: dict[str, Scores] | None

    @property
    def caption_ids(self) -> list[str]:
        """Ids of the captions in their order."""
        return [caption.id for caption in self.queries.captions]

    @property
    def video_ids(self) -> list[str]:
        """Ids of the videos in the order in which they were encoded."""
        return self.corpus.video_ids

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """The metrics of each score."""
        return {name: retrieval_metrics(ranks) for name, ranks in self.ranks.items()}


def evaluate(
    model: RetrievalModel,
    videos: Iterable[VideoBatch],
    queries: Iterable[QueryBatch],
    device: torch.device,
    fusion_weight: float,
    memory_mb: int,
    keep_scores: bool = False,
) -> Evaluation:
    """Encode every video and every caption once and rank all videos for each caption.

    The model is put into evaluation mode and back.

    Raises:
        InputError: for scores that are not finite, or a caption whose video is not among the videos.
    """
    was_training = model.training
    model.eval()
    try:
        corpus = encode_corpus(model, videos, device)
        query_set = encode_queries(model, queries, device)
        return rank(corpus, query_set, fusion_weight, memory_mb, keep_scores)
    finally:
        model.train(was_training)


def rank(
    corpus: Corpus, queries: QuerySet, fusion_weight: float, memory_mb: int, keep_scores: bool = False
) -> Evaluation:
    """Rank all videos of a corpus for each query; see `evaluate`."""
    place = {video_id: index for index, video_id in enumerate(corpus.video_ids)}
    if len(place) < len(corpus.video_ids):
        twice = next(video_id for video_id, count in Counter(corpus.video_ids).items() if count > 1)
        raise InputError(f"video {twice!r} is among the evaluated videos more than once")
    lost = [caption.id for caption in queries.captions if caption.video_id not in place]
    if lost:
        raise InputError(f"caption {lost[0]!r}: its video is not among the {len(place)} evaluated videos")
    if not queries.captions:
        raise InputError("no captions to evaluate")
    device = next(iter(queries.vectors.values())).device
    right_Q = torch.tensor([place[caption.video_id] for caption in queries.captions], device=device)
    ranks: dict[str, list[torch.Tensor]] = {}
    kept: dict[str, list[torch.Tensor]] = {}
    for part, scores in Scorer(corpus, memory_mb).blocks(queries, fusion_weight):
        for name, scores_qV in scores.items():
            if not check_finite(scores_qV):
                raise InputError(f"the {name} scores of caption {queries.captions[part.start].id!r} or one of the "
                    f"{len(scores_qV) - 1} after it are not finite: the weights or features are broken")  # fmt: skip
            ranks.setdefault(name, []).append(ranks_of(scores_qV, right_Q[part]).cpu())
            if keep_scores:
                kept.setdefault(name, []).append(scores_qV.cpu())
    return Evaluation(
        corpus,
        queries,
        {name: torch.cat(parts).numpy() for name, parts in ranks.items()},
        {name: torch.cat(parts).numpy() for name, parts in kept.items()} if keep_scores else None,
    )
