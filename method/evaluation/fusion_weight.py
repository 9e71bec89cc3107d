"""Fitting the weight of the action branch in the fused score to the captions of a split."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace

import torch

from method.config.settings import EvaluationSettings
from method.evaluation.corpus import Corpus, QuerySet, target_indices
from method.evaluation.metrics import FUSED, RECALL_AT, ranks_of
from method.evaluation.scorer import Scorer, ScoringSettings
from method.model.retrieval import RetrievalModel
from method.runtime.errors import InputError
from method.runtime.processes import Processes

# From the middle outwards: of equally good weights the one nearest to 0.5 is chosen.
FUSION_WEIGHTS = sorted((step / 20 for step in range(21)), key=lambda weight: abs(weight - 0.5))


def candidates(settings: EvaluationSettings, model: RetrievalModel) -> list[ScoringSettings]:
    """How a model may score: with the fusion weight of the settings, or if it is fitted with each of `FUSION_WEIGHTS`.

    Those that change nothing, or with which no branch would count, are left out. InputError when none is left.
    """
    if settings.fusion_weight is not None:
        return [ScoringSettings.of(settings, model)]
    found = [ScoringSettings.of(replace(settings, fusion_weight=FUSION_WEIGHTS[0]), model)]
    for weight in FUSION_WEIGHTS[1:]:
        with contextlib.suppress(InputError):
            other = ScoringSettings.of(replace(settings, fusion_weight=weight), model)
            if other.weights != found[0].weights:
                found.append(other)
    return found


def best_settings(
    corpus: Corpus, queries: QuerySet, settings: Sequence[ScoringSettings], processes: Processes
) -> ScoringSettings:
    """The settings, which differ in their weights alone, with the highest SumR of the fused score; in a tie, the first.

    Each process scores its shard of the queries.
    """
    if len(settings) == 1:
        return settings[0]
    with processes.raise_on_all():
        target_Q = target_indices(corpus, queries)
        found = torch.zeros(len(settings), dtype=torch.long, device=target_Q.device)
        for block, scores in Scorer(corpus, settings[0]).blocks(queries, processes):
            vectors = queries.subset(block).vectors
            branches = {name: scores_qV for name, scores_qV in scores.items() if name != FUSED}
            for number, other in enumerate(settings):
                ranks_q = ranks_of(other.fuse(branches, vectors), target_Q[block])
                found[number] += sum((ranks_q <= k).sum() for k in RECALL_AT)
    totals = [sum(counts) for counts in zip(*processes.exchange(found.tolist()), strict=True)]
    return settings[totals.index(max(totals))]
