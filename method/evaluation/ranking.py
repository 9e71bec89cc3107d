"""Evaluate a model on a split: the one code path of training, `--only_eval` and `evaluate.py`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from method.data.batch import QueryBatch, VideoBatch
from method.data.captions import Caption
from method.evaluation.best_videos import BestOfBlocks, BestVideos
from method.evaluation.corpus import Corpus, QuerySet, encode_corpus, encode_queries, target_indices
from method.evaluation.fusion_weight import best_settings
from method.evaluation.intervals import Interval, recall_intervals
from method.evaluation.metrics import FUSED, Ranks, non_finite_score, ranks_of, retrieval_metrics
from method.evaluation.multi_gt import RightVideos
from method.evaluation.multi_gt_metrics import RightRanks, RightScores
from method.evaluation.score_files import ScoreFiles, Scores
from method.evaluation.scorer import Scorer, ScoringSettings
from method.evaluation.winners import Winners
from method.model.retrieval import RetrievalModel
from method.runtime.errors import InputError
from method.runtime.processes import SINGLE_PROCESS, Processes


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation.

    corpus, queries: the encoded videos and captions, on the device of the model.
    settings: how they were scored.
    ranks: score name -> rank of each caption's video, in the order of the captions. Score names are the branches of the
        model and 'fused'.
    scores: score name -> (Q, V) float32 on disk, if requested.
    winners: score name -> the best wrong video of each caption, on the CPU.
    right_ranks: ranks of several right videos, with labels. best_videos: of each caption, if requested.
    """

    corpus: Corpus
    queries: QuerySet
    settings: ScoringSettings
    ranks: dict[str, Ranks]
    scores: dict[str, Scores] | None
    winners: dict[str, Winners]
    right_ranks: RightRanks | None = None
    best_videos: BestVideos | None = None

    @property
    def caption_ids(self) -> list[str]:
        """Ids of the captions, in order."""
        return [caption.id for caption in self.queries.captions]

    @property
    def video_ids(self) -> list[str]:
        """Ids of the videos, in corpus order."""
        return self.corpus.video_ids

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """The metrics of each score."""
        return {name: retrieval_metrics(ranks) for name, ranks in self.ranks.items()}

    @cached_property
    def intervals(self) -> dict[str, dict[str, Interval]] | None:
        """The bootstrap intervals of each score's recalls, see `recall_intervals`; computed once, in seconds."""
        return recall_intervals(self.ranks, [caption.video_id for caption in self.queries.captions])


Encoded = tuple[Corpus, QuerySet]


def encode(
    model: RetrievalModel,
    videos: Iterable[VideoBatch],
    queries: Iterable[QueryBatch],
    device: torch.device,
    precision: str,
    processes: Processes,
) -> Encoded:
    """The videos and captions of all processes as a model in evaluation mode encodes them."""
    corpus = encode_corpus(model, videos, device, precision, processes)
    return corpus, encode_queries(model, queries, device, precision, processes)


def evaluate(
    model: RetrievalModel,
    videos: Iterable[VideoBatch],
    queries: Iterable[QueryBatch],
    device: torch.device,
    settings: ScoringSettings,
    scores_in: Path | None = None,
    processes: Processes = SINGLE_PROCESS,
    right_videos: RightVideos | None = None,
    best_videos: int = 0,
    also: Encoded | None = None,
    alternatives: Sequence[ScoringSettings] = (),
) -> Evaluation:
    """Encode every video and every caption once and rank all videos for each caption.

    The model is in evaluation mode meanwhile.

    Args:
        model: on `device`.
        videos: batches of the videos of this process.
        queries: batches of the captions of this process.
        device: where to compute.
        settings: how to score.
        scores_in: folder on whose disk rank 0 stores the scores; None: compute only ranks.
        processes: the process group that shares the work (`method.evaluation.sharding`); each rank gets the result.
        right_videos: labels with several right videos for a caption.
        best_videos: how many of the best videos of each caption to keep.
        also: the same videos and captions by another model, whose branches are in `settings`, too.
        alternatives: settings with other weights, of which the first to reach the highest SumR is used instead.

    Raises:
        InputError: for scores that are not finite, or a caption whose video is not among the videos.
    """
    was_training = model.training
    model.eval()
    try:
        corpus, query_set = encode(model, videos, queries, device, settings.precision, processes)
        if also is not None:
            corpus, query_set = corpus.joined(also[0]), query_set.joined(also[1])
        settings = best_settings(corpus, query_set, [settings, *alternatives], processes)
        return rank(corpus, query_set, settings, scores_in, processes, right_videos, best_videos)
    finally:
        model.train(was_training)


def rank(
    corpus: Corpus,
    queries: QuerySet,
    settings: ScoringSettings,
    scores_in: Path | None = None,
    processes: Processes = SINGLE_PROCESS,
    right_videos: RightVideos | None = None,
    best_videos: int = 0,
) -> Evaluation:
    """Rank all videos of a corpus for each query; see `evaluate`."""
    sharing = processes if scores_in is None else SINGLE_PROCESS  # rank 0 needs all scores to write them
    files: ScoreFiles | None = None
    own = slice(0, 0)  # the queries of this process
    with processes.raise_on_all():
        target_Q = target_indices(corpus, queries)
        if scores_in is not None and processes.is_first:
            files = ScoreFiles(scores_in, len(queries.captions), len(corpus.video_ids))
        # Allocated before the blocks: small tensors kept from each block would fragment the memory that blocks free.
        ranks = {name: torch.empty_like(target_Q) for name in (*queries.vectors, FUSED)}
        winners = {name: Winners.empty(target_Q) for name in ranks}
        right = best = None
        if right_videos is not None:
            right = RightScores(right_videos, queries.captions, corpus.video_ids, ranks, target_Q.device)
        if best_videos:
            best = BestOfBlocks(len(queries.captions), min(best_videos, len(corpus.video_ids)), target_Q.device)
        for block, scores in Scorer(corpus, settings).blocks(queries, sharing):
            for name, ranks_q in rank_block(scores, target_Q[block], queries.captions[block]).items():
                ranks[name][block] = ranks_q
                winners[name].fill(block, scores[name], target_Q[block])
            own = slice(own.start if own.stop else block.start, block.stop)
            if files is not None:
                files.write(block.start, scores)
            if right is not None:
                right.add(block, scores)
            if best is not None:
                best.add(block, scores)
    shards = sharing.gather({name: ranks_Q[own].to("cpu", copy=True) for name, ranks_Q in ranks.items()})
    joined = {name: torch.cat([shard[name] for shard in shards]).numpy() for name in ranks}
    parts = sharing.gather({name: others.part(own) for name, others in winners.items()})
    return Evaluation(
        corpus,
        queries,
        settings,
        joined,
        files.read() if files is not None else None,
        {name: Winners.join([part[name] for part in parts]) for name in winners},
        right.ranks(own, sharing) if right is not None else None,
        best.best(own, sharing) if best is not None else None,
    )


def rank_block(scores: Mapping[str, Tensor], target_q: Tensor, captions: Sequence[Caption]) -> dict[str, Tensor]:
    """Rank (q,) of each caption's video under each score. InputError naming a score that is not finite."""
    bad = non_finite_score(scores)  # the only host-device sync of a block; ranks are fetched after the last one
    if bad is not None:
        raise InputError(f"the {bad} scores of caption {captions[0].id!r} or one of the "
            f"{len(captions) - 1} after it are not finite: the weights or features are broken")  # fmt: skip
    return {name: ranks_of(scores_qV, target_q) for name, scores_qV in scores.items()}
