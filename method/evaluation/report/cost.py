"""The cost of a model: parameters, multiply-adds, index size, and latency on the machine that runs this.

Letters: Q captions, V videos.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from method.data.ragged import Ragged
from method.data.splits import Split
from method.evaluation.corpus import Corpus, QuerySet
from method.evaluation.ranking import Evaluation
from method.evaluation.scorer import Scorer
from method.model.retrieval import RetrievalModel
from method.ops.precision import autocast
from method.runtime.hardware import machine

_LEAST_SECONDS = 0.5
_MOST_RUNS = 50


@dataclass(frozen=True)
class Cost:
    """One cost, and how it was counted or measured."""

    what: str
    value: float
    unit: str
    how: str


def costs(model: RetrievalModel, evaluation: Evaluation, split: Split) -> list[Cost]:
    """All costs of an evaluated model."""
    device = model.device
    return [
        *_sizes(model, evaluation.corpus),
        *_products(model, split, device),
        *_encoding_time(model, split, device, evaluation.settings.precision),
        *_scoring_times(evaluation, device),
    ]


def multiply_adds(run: Callable[[], object]) -> int:
    """Multiply-adds of matrix products, convolutions and attention in `run`; element-wise operations are not counted.

    >>> multiply_adds(lambda: torch.ones(2, 3) @ torch.ones(3, 5))
    30
    """
    # The counter does not know all fused attention kernels; the math backend consists of plain matrix products.
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops()) // 2


def milliseconds(run: Callable[[], object], device: torch.device) -> float:
    """Median time of `run` over at most 50 runs or half a second, after a warm-up run."""
    taken: list[float] = []
    while len(taken) < 2 or (sum(taken) < _LEAST_SECONDS and len(taken) < _MOST_RUNS):
        _wait(device)
        started = time.perf_counter()
        run()
        _wait(device)
        taken.append(time.perf_counter() - started)
        if taken[0] > _LEAST_SECONDS:
            break
    return 1000 * float(np.median(taken[1:] or taken))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _sizes(model: RetrievalModel, corpus: Corpus) -> list[Cost]:
    parameters = sum(weight.numel() for weight in model.parameters())
    keys = [frames.values for frames in corpus.frames.values()]
    size = sum(values.numel() * values.element_size() for values in keys)
    mean = sum(map(len, keys)) / len(corpus.video_ids)
    widths = " or ".join(str(width) for width in sorted({values.shape[1] for values in keys}))
    dtype = str(keys[0].dtype).removeprefix("torch.")
    how = f"mean over the corpus: {mean:.1f} embeddings of all branches, {widths} {dtype} values each"
    return [
        Cost("parameters", parameters, "", "all weights of the model, without the text encoder of free-text queries"),
        Cost("index, per video", size / len(corpus.video_ids), "bytes", how),
        Cost("index, whole corpus", size / 2**20, "MiB", f"{len(corpus.video_ids):,} videos"),
    ]


def _products(model: RetrievalModel, split: Split, device: torch.device) -> list[Cost]:
    longest, tokens = model.architecture.max_frames, _median_tokens(model, split)
    median = {
        name: round(float(np.median([min(count, longest) for count in counts.values()])))
        for name, counts in split.frames.items()
        if name in model.branches  # zero-shot CLIP beside the model encodes nothing
    }
    shown = " and ".join(f"{count} {name}" for name, count in median.items())
    counted = "; matrix products, convolutions and attention, without element-wise operations"

    def cost(what: str, run: Callable[[], object], how: str) -> Cost:
        return Cost(what, multiply_adds(run) / 1e6, "M multiply-adds", how + counted)

    long_video, video = _streams(model, dict.fromkeys(median, longest), device), _streams(model, median, device)
    query = _rows(tokens, model.architecture.query_width, device)
    with torch.inference_mode():
        keys, vectors = model.encode_videos(video), model.encode_queries(query)
    compared = " and ".join(f"{len(rows.values)} {name}" for name, rows in keys.items())
    return [
        cost("encode a long video", lambda: model.encode_videos(long_video), f"{longest} frames per branch"),
        cost("encode a median video", lambda: model.encode_videos(video), f"{shown} frames"),
        cost(
            "encode a query", lambda: model.encode_queries(query), f"{tokens} tokens (the median), from their features"
        ),
        cost(
            "score a query against a median video",
            lambda: [model.branch(name).score(rows, vectors[name]) for name, rows in keys.items()],
            f"{compared} embeddings",
        ),
    ]


def _encoding_time(model: RetrievalModel, split: Split, device: torch.device, precision: str) -> list[Cost]:
    tokens = _median_tokens(model, split)
    query = _rows(tokens, model.architecture.query_width, device)
    how = f"{tokens} tokens, from token features, on {machine(device)}"
    with torch.inference_mode(), autocast(device, precision):
        return [Cost("time to encode a query", milliseconds(lambda: model.encode_queries(query), device), "ms", how)]


def _scoring_times(evaluation: Evaluation, device: torch.device) -> list[Cost]:
    queries, videos = evaluation.queries, len(evaluation.video_ids)
    scorer = Scorer(evaluation.corpus, evaluation.settings)
    rows = []
    for count in sorted({1, min(100, len(queries.captions)), len(queries.captions)}):
        taken = milliseconds(partial(_score, scorer, queries.subset(slice(count))), device)
        how = f"a batch of {count:,} against {videos:,} videos: {taken:,.1f} ms, on {machine(device)}"
        rows.append(Cost(f"time to score a query, {count:,} at once", taken / count, "ms per query", how))
    return rows


def _score(scorer: Scorer, queries: QuerySet) -> None:
    for _ in scorer.blocks(queries):
        pass


def _median_tokens(model: RetrievalModel, split: Split) -> int:
    return round(float(np.median([min(count, model.architecture.max_words) for count in split.tokens.values()])))


def _streams(model: RetrievalModel, counts: Mapping[str, int], device: torch.device) -> dict[str, Ragged]:
    """A video with so many frames of each branch."""
    return {name: _rows(count, model.architecture.branches[name].width, device) for name, count in counts.items()}


def _rows(count: int, width: int, device: torch.device) -> Ragged:
    return Ragged.of([torch.ones(count, width)]).to(device)
