"""Evaluations of small models on made-up videos, for the tests of moments and reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from method.data.captions import Caption, group_by_video
from method.data.check import Split
from method.evaluation.corpus import Corpus, QuerySet
from method.evaluation.frame_keys import FrameKeys
from method.evaluation.moments import TrueMoment
from method.evaluation.ranking import Evaluation, rank
from method.evaluation.report.subject import Subject
from method.model.scoring import normalized
from tests.helpers.small_models import lively_model, random_rows, random_streams

WEIGHT = 0.3


def some_captions(videos: int, texts: Sequence[str] = ("a person opens the door",)) -> list[Caption]:
    """One to three captions a video; `texts` are used in turn."""
    ids = [f"V{video}#enc#{k}" for video in range(videos) for k in range(1 + video % 3)]
    return [Caption(name, name.split("#")[0], texts[place % len(texts)]) for place, name in enumerate(ids)]


def some_moments(captions: Sequence[Caption], every: int = 1) -> dict[str, TrueMoment]:
    """A moment for every `every`-th caption; the videos are 30 to 60 seconds long."""
    random = np.random.default_rng(5)
    moments = {}
    for place, caption in enumerate(captions):
        duration = 30.0 + int(caption.video_id[1:]) % 31
        first, last = sorted(random.uniform(0, duration, 2).tolist())
        if place % every == 0:
            moments[caption.id] = TrueMoment(first, last, duration)
    return moments


def make_subject(
    captions: list[Caption], moments: Mapping[str, TrueMoment], checkpoint: Path, **architecture: Any
) -> Subject:
    """What a report is about: an untrained model's evaluation on random features."""
    random = np.random.default_rng(0)
    model = lively_model(**architecture)
    video_ids = list(group_by_video(captions))
    action, object_ = (random.integers(1, 24, len(video_ids)).tolist() for _ in range(2))
    streams = random_streams(model.architecture, action, object_)
    words = random_rows(random.integers(1, 10, len(captions)).tolist(), model.architecture.query_width)
    with torch.inference_mode():
        keys = {name: normalized(rows) for name, rows in model.encode_videos(streams).items()}
        vectors = {name: F.normalize(rows, dim=-1) for name, rows in model.encode_queries(words).items()}
    corpus = Corpus(video_ids, {name: FrameKeys.of(rows) for name, rows in keys.items()})
    evaluation = rank(corpus, QuerySet(captions, vectors), WEIGHT, 64, checkpoint.parent)
    frames = {name: dict(zip(video_ids, rows.layout.lengths, strict=True)) for name, rows in streams.items()}
    split = Split(
        "evaluated split", captions, frames, dict(zip(evaluation.caption_ids, words.layout.lengths, strict=True))
    )
    options = {"dataset_name": "demo", "fusion_weight": WEIGHT, "eval_memory_mb": 64, "eval_amp": "off"}
    return Subject(model, evaluation, split, options, 7, checkpoint, moments)


def evaluation_of(tmp: Path, videos: int, **architecture: Any) -> Evaluation:
    """Only the evaluation."""
    return make_subject(some_captions(videos), {}, tmp / "model.ckpt", **architecture).evaluation
