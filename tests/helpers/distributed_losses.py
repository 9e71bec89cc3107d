"""Losses and gradients of sharded batches, compared with those of one process.

Each process of a group in tests/runtime/test_processes.py runs it; it writes the largest differences of every case to
the given folder.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from method.data.batch import EpochBatches, VideoBatch
from method.data.captions import Caption
from method.data.edits import EditedQueries
from method.data.ragged import Ragged
from method.model.losses import LossSettings, total
from method.model.retrieval import RetrievalModel
from method.runtime.process_group import joined_processes
from method.runtime.processes import SINGLE_PROCESS, Processes
from method.training.batch_losses import training_losses
from method.training.sharded_batch import shard_batch
from tests.helpers.reference_model import split_values
from tests.helpers.small_models import VARIANTS, averaged, lively_model, random_rows, random_streams

CAPTIONS = [2, 1, 3, 1, 1, 2, 1]  # of each video
ACTION, OBJECT = [5, 1, 24, 7, 9, 3, 12], [4, 6, 2, 20, 1, 8, 3]  # frames: each process has the longest of one stream
WEIGHTS = {"triplet": 1.0, "nce": 0.02, "negative_queries": 0.5}
ALL = {**WEIGHTS, "cosine_nce": 0.1, "query_diverse": 0.005, "text_structure": 0.5, "optimal_matching": 0.5}
SOFT = {"weights": ALL, "false_negatives": "similar", "similar_from": 0.1, "soft_targets": 0.4, "fused": "beside"}
TAUGHT = {**SOFT, "soft_teacher": "average", "fusion_weight": 0.3}
WITH_COSINES = {**WEIGHTS, "cosine_nce": 0.1}
EDITS = {"action": [0, 0, 2], "object": [1, 3, 3, 3, 8, 9]}  # captions that have one each time they are named


FUSIONS = ("deformable-i3d_q-valid", "deformable-double_q-padded", "attention-double_q-valid", "positions-padded",
    "wide-kernel", "no-fusion", "object-only")  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A batch of the first `videos`, and how it is trained with."""

    changes: Mapping[str, Any]
    videos: int = 7
    hard: bool = False
    edited: bool = True
    losses: Mapping[str, Any] = field(default_factory=dict)


CASES = {
    **{name: Case(VARIANTS[name]) for name in FUSIONS},
    "clips": Case({"head": "clips", "attention": "gaussian", "query": "double_q", "fusion_gradient": True}),
    "windows": Case({"head": "windows", "registers": 2, "fusion_extent": "padded"}, hard=True),
    "query weights": Case({"query_weights": True}, losses={"fused": "beside", "fusion_weight": 0.3}),
    "hardest negatives": Case({}, hard=True),
    "without edits": Case({}, edited=False),
    "two videos": Case({"fusion_extent": "padded"}, videos=2),
    "one video": Case({"fusion_extent": "padded"}, videos=1),
    "the fused score beside": Case({}, losses={"fused": "beside", "fusion_weight": 0.3}),
    "the fused score instead": Case({}, hard=True, losses={"fused": "instead", "weights": WITH_COSINES}),
    "all losses": Case({}, losses=SOFT),
    "all losses, hardest negatives": Case({}, hard=True, losses=SOFT),
    "all losses, two videos": Case({}, videos=2, losses=SOFT),
    "average as the teacher": Case({"query_weights": True}, hard=True, losses=TAUGHT),
    "average as the teacher, two videos": Case({}, videos=2, losses={**TAUGHT, "fused": "instead"}),
    "one video, without edits": Case({}, videos=1, edited=False),
}


def main() -> None:
    """Compare every case, as one of the processes."""
    with joined_processes() as processes:
        differences = {name: compare(case, processes) for name, case in CASES.items()}
        Path(sys.argv[1], f"{processes.rank}.json").write_text(json.dumps(differences))


def compare(case: Case, processes: Processes) -> float:
    """The largest difference of a loss term or a gradient from that of one process, relative where it is above 1."""
    alone, together = (compute(case, group) for group in (SINGLE_PROCESS, processes))
    assert alone.keys() == together.keys(), alone.keys() ^ together.keys()
    return max(((together[name] - alone[name]).abs() / alone[name].abs().clamp(min=1)).max().item() for name in alone)


def compute(case: Case, processes: Processes) -> dict[str, Tensor]:
    """Loss terms and gradients by their names."""
    model = lively_model(**case.changes)
    batch, edits = batch_of_rank(case, model, processes)
    sharded = shard_batch(processes, batch, edits)
    generator = torch.Generator().manual_seed(1)
    settings = LossSettings(**{"hard_pool_size": 3, "weights": WEIGHTS, **case.losses})
    average = averaged(model) if settings.soft_teacher == "average" else None
    terms = training_losses(model, sharded, settings, case.hard, edits, generator, average)
    total(terms).backward()
    processes.add_gradients(model.parameters())
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return {**{name: term.detach() for name, term in terms.items()}, **gradients}


def batch_of_rank(
    case: Case, model: RetrievalModel, processes: Processes
) -> tuple[VideoBatch, dict[str, EditedQueries]]:
    """A process's videos with their captions, and the edits of these."""
    order = EpochBatches(case.videos, case.videos, 0, processes.rank, processes.count)
    videos = list(order.shard(0)) or [0]
    streams = random_streams(model.architecture, ACTION[: case.videos], OBJECT[: case.videos])
    owners = [video for video in range(case.videos) for _ in range(CAPTIONS[video])]
    indices = [index for index, owner in enumerate(owners) if owner in videos]
    tokens = split_values(random_rows([1 + index % 4 for index in range(len(owners))], 8, seed=3))
    batch = VideoBatch(
        video_ids=tuple(map(str, videos)),
        streams={name: Ragged.of([split_values(rows)[video] for video in videos]) for name, rows in streams.items()},
        captions=tuple(Caption(str(index), "", str(owners[index] % 3)) for index in indices),
        tokens=Ragged.of([tokens[index] for index in indices]),
        labels_Q=torch.tensor([videos.index(owners[index]) for index in indices]),
    )
    if not order.shard(0):
        return replace(batch, video_ids=(), captions=(), labels_Q=batch.labels_Q[:0]), {}
    edits = {name: edits_of(name, indices) for name in model.architecture.temperatures if case.edited}
    return batch, {name: made for name, made in edits.items() if made is not None}


def edits_of(name: str, indices: list[int]) -> EditedQueries | None:
    rows = split_values(random_rows([1 + number % 3 for number in range(len(EDITS[name]))], 8, seed=4))
    own = [(row, indices.index(owner)) for row, owner in zip(rows, EDITS[name], strict=True) if owner in indices]
    if not own:
        return None
    return EditedQueries(Ragged.of([row for row, _ in own]), torch.tensor([owner for _, owner in own]))
