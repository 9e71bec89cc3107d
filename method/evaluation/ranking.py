"""Evaluate a model on a split: the one path of training, `--only_eval` and `evaluate.py`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from method.data.batch import QueryBatch, VideoBatch
from method.data.captions import Caption
from method.evaluation.corpus import Corpus, QuerySet, Scorer, encode_corpus, encode_queries
from method.evaluation.metrics import Ranks, broken_score, ranks_of, retrieval_metrics
from method.evaluation.score_files import KeptScores, Scores
from method.model.retrieval import RetrievalModel
from method.runtime import hardware
from method.runtime.errors import InputError
from method.runtime.processes import SINGLE_PROCESS, Processes


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    corpus, queries: the videos and the captions as they were encoded, on the device of the model.
    ranks: score name -> rank of each caption's video, in the order of the captions. Score names are the branches that
    are on, and 'fused'.
    scores: score name -> (Q, V) float32 on the disk, only if asked for.
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
    precision: str = "off",
    scores_in: Path | None = None,
    processes: Processes = SINGLE_PROCESS,
) -> Evaluation:
    """Encode every video and every caption once and rank all videos for each caption.

    The model is put into evaluation mode and back.

    Args:
        model: on `device`.
        videos: batches of the videos.
        queries: batches of the captions.
        device: that computes.
        fusion_weight: share of the action score.
        memory_mb: MiB for scoring; keys of frames and vectors of captions come on top.
        precision: 'off', 'bf16' or 'fp16', of the encoders, keys and vectors; scores are float32.
        scores_in: the folder on whose disk the scores are kept, if they are to be kept; by the first process alone.
        processes: that share the work, each with its batches, see `method.evaluation.sharding`; each gets the result.

    Raises:
        InputError: for scores that are not finite, or a caption whose video is not among the videos.
    """
    was_training = model.training
    model.eval()
    try:
        corpus = encode_corpus(model, videos, device, precision, processes)
        query_set = encode_queries(model, queries, device, precision, processes)
        return rank(corpus, query_set, fusion_weight, memory_mb, scores_in, processes)
    finally:
        model.train(was_training)


def rank(
    corpus: Corpus,
    queries: QuerySet,
    fusion_weight: float,
    memory_mb: int,
    scores_in: Path | None = None,
    processes: Processes = SINGLE_PROCESS,
) -> Evaluation:
    """Rank all videos of a corpus for each query; see `evaluate`."""
    sharing = processes if scores_in is None else SINGLE_PROCESS  # who keeps the scores needs all of them
    kept: KeptScores | None = None
    own = slice(0, 0)  # the queries of this process
    with processes.raise_on_all():
        right_Q = right_places(corpus, queries)
        if scores_in is not None and processes.is_first:
            kept = KeptScores(scores_in, len(queries.captions), len(corpus.video_ids))
        # Made before all blocks: what stayed of each of them would split the memory that they leave behind.
        ranks = {name: torch.empty_like(right_Q) for name in (*queries.vectors, "fused")}
        for part, scores in Scorer(corpus, memory_mb).blocks(queries, fusion_weight, sharing):
            for name, ranks_q in rank_block(scores, right_Q[part], queries.captions[part]).items():
                ranks[name][part] = ranks_q
            own = slice(own.start if own.stop else part.start, part.stop)
            if kept is not None:
                kept.write(part.start, scores)
    of_all = sharing.gather({name: ranks_Q[own].to("cpu", copy=True) for name, ranks_Q in ranks.items()})
    joined = {name: torch.cat([of_one[name] for of_one in of_all]).numpy() for name in ranks}
    return Evaluation(corpus, queries, joined, kept.read() if kept is not None else None)


def right_places(corpus: Corpus, queries: QuerySet) -> Tensor:
    """The place of each caption's video in the corpus, (Q,), on the device of the queries.

    InputError without captions, and for a caption whose video is not there or there twice.
    """
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
    return hardware.sent(torch.tensor([place[caption.video_id] for caption in queries.captions]), device)


def rank_block(scores: Mapping[str, Tensor], right_q: Tensor, captions: Sequence[Caption]) -> dict[str, Tensor]:
    """Rank (q,) of each caption's video under each score. InputError naming a score that is not finite."""
    broken = broken_score(scores)  # the one question of a block to the device; the ranks are fetched after the last
    if broken is not None:
        raise InputError(f"the {broken} scores of caption {captions[0].id!r} or one of the "
            f"{len(captions) - 1} after it are not finite: the weights or features are broken")  # fmt: skip
    return {name: ranks_of(scores_qV, right_q) for name, scores_qV in scores.items()}
