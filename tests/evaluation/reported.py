"""Evaluations of small models on random videos, for the tests of moments and reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from method.data.captions import Caption, group_by_video
from method.data.splits import Split
from method.evaluation.corpus import Corpus, QuerySet
from method.evaluation.frame_embeddings import FrameEmbeddings
from method.evaluation.moments import TrueMoment
from method.evaluation.ranking import Evaluation, rank
from method.evaluation.report.input import ReportInput
from method.model.scoring import normalized
from tests.evaluation.corpora import settings_of
from tests.helpers.small_models import lively_model, many_branches, random_rows, random_streams

WEIGHT = 0.3


def some_captions(videos: int, texts: Sequence[str] = ("a person opens the door",)) -> list[Caption]:
    """One to three captions a video; `texts` are used in turn."""
    ids = [f"V{video}#enc#{k}" for video in range(videos) for k in range(1 + video % 3)]
    return [Caption(name, name.split("#")[0], texts[index % len(texts)]) for index, name in enumerate(ids)]


def some_moments(captions: Sequence[Caption], every: int = 1) -> dict[str, TrueMoment]:
    """A moment for every `every`-th caption; the videos are 30 to 60 seconds long."""
    random = np.random.default_rng(5)
    moments = {}
    for index, caption in enumerate(captions):
        duration = 30.0 + int(caption.video_id[1:]) % 31
        first, last = sorted(random.uniform(0, duration, 2).tolist())
        if index % every == 0:
            moments[caption.id] = TrueMoment(first, last, duration)
    return moments


def report_input(
    captions: list[Caption], moments: Mapping[str, TrueMoment], checkpoint: Path, branches: Sequence[str] = (),
    **architecture: Any,
) -> ReportInput:  # fmt: skip
    """An untrained model evaluated on random features; `branches` are independent ones in the place of the model's."""
    random = np.random.default_rng(0)
    model = many_branches(branches) if branches else lively_model(**architecture)
    video_ids = list(group_by_video(captions))
    lengths = [random.integers(1, 24, len(video_ids)).tolist() for _ in range(max(2, len(branches)))]
    if branches:
        streams = {name: random_rows(lengths[i], 10, seed=i) for i, name in enumerate(branches)}
    else:
        streams = random_streams(model.architecture, *lengths)
    tokens = random_rows(random.integers(1, 10, len(captions)).tolist(), model.architecture.query_width)
    with torch.inference_mode():
        videos = {name: normalized(rows) for name, rows in model.encode_videos(streams).items()}
        vectors = {name: F.normalize(rows, dim=-1) for name, rows in model.encode_queries(tokens).items()}
    corpus = Corpus(video_ids, {name: FrameEmbeddings.of(rows) for name, rows in videos.items()})
    evaluation = rank(
        corpus, QuerySet(captions, vectors), settings_of(WEIGHT, branches=list(videos)), checkpoint.parent
    )
    frames = {name: dict(zip(video_ids, rows.layout.lengths, strict=True)) for name, rows in streams.items()}
    split = Split(
        "evaluated split", captions, frames, dict(zip(evaluation.caption_ids, tokens.layout.lengths, strict=True))
    )
    return ReportInput(model, evaluation, split, "demo", 7, checkpoint, moments)


def evaluation_of(tmp: Path, videos: int, **architecture: Any) -> Evaluation:
    """Only the evaluation."""
    return report_input(some_captions(videos), {}, tmp / "model.ckpt", **architecture).evaluation
