"""Frame embeddings in length buckets, and scores and best frames in blocks against a loop."""

import contextlib
import math
import weakref
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from method.evaluation.frame_embeddings import FrameEmbeddings
from method.evaluation.ranking import rank
from method.evaluation.scorer import Scorer
from method.ops.precision import PRECISIONS, matmul_precision
from tests.evaluation.corpora import BRANCHES, Encoded, random_encoded, settings_of

HALVES = ("bf16", "fp16")


# Frame embeddings


@pytest.mark.parametrize("piece", [1, 4, 500])
def test_joined_embeddings_have_every_video(piece: int) -> None:
    encoded = random_encoded(videos=25, queries=1, longest=6)
    corpus = encoded.corpus(piece)
    for name, frames in encoded.frames.items():
        keys = corpus.frames[name]
        assert keys.lengths == tuple(len(own) for own in frames)
        assert len(keys) == 25
        for index, own in enumerate(frames):
            assert torch.equal(keys.video(index), own)
            assert torch.equal(corpus.video(index)[name], own)


def test_buckets_are_views_of_every_video() -> None:
    encoded = random_encoded(videos=25, queries=1, longest=6)
    for name, keys in encoded.corpus().frames.items():
        indices = []
        for bucket in keys.buckets:
            assert bucket.frames_vLD.untyped_storage().data_ptr() == keys.values.untyped_storage().data_ptr()
            for index, own in zip(bucket.index_v.tolist(), bucket.frames_vLD, strict=True):
                assert torch.equal(own, encoded.frames[name][index])
                indices.append(index)
        assert sorted(indices) == list(range(25))
        assert len(keys.buckets) == len(set(keys.lengths))


def test_joining_frees_each_chunk() -> None:
    alive: list[weakref.ref[torch.Tensor]] = []

    def pieces() -> Iterator[torch.Tensor]:
        for _ in range(4):
            assert all(own() is None for own in alive)
            piece = torch.ones(3, 2)
            alive.append(weakref.ref(piece))
            yield piece
            del piece

    assert FrameEmbeddings.join(pieces(), [4, 8]).values.sum() == 24
    assert len(alive) == 4


def test_other_numbers_of_rows_than_lengths_are_refused() -> None:
    for rows in (3, 5):
        with pytest.raises(ValueError, match=f"{rows} frame embeddings, expected 4"):
            FrameEmbeddings.join([torch.ones(rows, 2)], [2, 2])


# Scores and best frames


@pytest.mark.parametrize("memory_mb", [1, 3, 512])
@pytest.mark.parametrize(("videos", "queries", "longest"), [(40, 300, 128), (1, 5, 9), (30, 1, 20), (1, 1, 1)])
def test_blocks_equal_a_loop(memory_mb: int, videos: int, queries: int, longest: int) -> None:
    encoded = random_encoded(videos, queries, longest)
    expected = encoded.scores(0.3)
    seen = 0
    for part, scores in Scorer(encoded.corpus(), settings_of(0.3, memory_mb)).blocks(encoded.queries()):
        assert part.start == seen
        seen = part.stop
        assert set(scores) == set(expected)
        for name, scores_qV in scores.items():
            torch.testing.assert_close(scores_qV, expected[name][part], atol=1e-6, rtol=1e-5)
    assert seen == queries


def test_best_frames_are_the_first_of_equals() -> None:
    """Integers, so that frames tie exactly."""
    generator = torch.Generator().manual_seed(3)
    encoded = random_encoded(videos=30, queries=20, longest=9)
    for name in BRANCHES:
        lengths = [len(own) for own in encoded.frames[name]]
        encoded.frames[name] = [torch.randint(-1, 2, (n, 4), generator=generator).float() for n in lengths]
        encoded.vectors[name] = torch.randint(-1, 2, (20, 4), generator=generator).float()
    settings, expected = settings_of(0.3, 8), encoded.best_frames()
    scores = Scorer(encoded.corpus(), settings).scores(encoded.vectors)
    for name in BRANCHES:
        assert any(frame > 0 for row in expected[name] for frame in row)
        for index, frames_LD in enumerate(encoded.frames[name]):
            best_1q, frame_1q = settings.best(name, frames_LD[None], encoded.vectors[name])
            assert frame_1q[0].tolist() == [row[index] for row in expected[name]]
            assert torch.equal(best_1q[0], scores[name][:, index])
    for name, scores_qV in scores.items():
        torch.testing.assert_close(scores_qV, encoded.scores(0.3)[name])


@pytest.mark.parametrize("width", [16, 64, 100, 384])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_score_does_not_depend_on_what_is_scored_with_it_to_the_bit(width: int, threads: int) -> None:
    """As few videos, frames and queries as a block may have."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        encoded = random_encoded(videos=40, queries=90, longest=70, width=width)
        all_scores = Scorer(encoded.corpus(), settings_of(0.3)).scores(encoded.vectors)
        for videos, queries in (([0], [89]), ([3, 17], [5]), (range(40), [8]), (range(9, 12), range(50))):
            frames = {name: [own[index] for index in videos] for name, own in encoded.frames.items()}
            vectors = {name: own[list(queries)] for name, own in encoded.vectors.items()}
            scores = Scorer(Encoded(frames, vectors).corpus(), settings_of(0.3)).scores(vectors)
            for name, own_qV in scores.items():
                assert torch.equal(own_qV, all_scores[name][list(queries)][:, list(videos)])
    finally:
        torch.set_num_threads(before)


# Memory


class Allocations(TorchDispatchMode):
    """Tracks the bytes of live tensors allocated inside; `peak` is the maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: Counter[int] = Counter()
        self.bytes: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {own.untyped_storage().data_ptr() for own in tree_leaves(args) if isinstance(own, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for own in tree_leaves(result):
            if isinstance(own, torch.Tensor):
                storage = own.untyped_storage()
                if storage.data_ptr() not in before or storage.data_ptr() in self.bytes:
                    self.bytes[storage.data_ptr()] = storage.nbytes()
                    self.tensors[storage.data_ptr()] += 1
                    weakref.finalize(own, self.forget, storage.data_ptr())
        self.peak = max(self.peak, sum(self.bytes.values()))
        return result

    def forget(self, index: int) -> None:
        self.tensors[index] -= 1
        if not self.tensors[index]:
            del self.bytes[index]


def peak_of(encoded: Encoded, memory_mb: int) -> tuple[int, int]:
    """Peak bytes while ranking, besides embeddings, and the number of blocks of queries."""
    corpus, queries = encoded.corpus(), encoded.queries()
    blocks = math.ceil(len(queries.captions) / Scorer(corpus, settings_of(0.5, memory_mb)).query_block)
    with Allocations() as allocations:
        rank(corpus, queries, settings_of(0.5, memory_mb))
    return allocations.peak, blocks


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("videos", "queries", "longest"), [(50, 1500, 128), (1000, 150, 8), (2000, 80, 4)])
def test_ranking_stays_within_its_memory_budget(videos: int, queries: int, longest: int, precision: str) -> None:
    encoded = in_half(random_encoded(videos, queries, longest, width=8), precision)
    results = 3 * 2 * 8 * queries  # the ranks, while they are joined
    for memory_mb in (1, 2):
        peak, blocks = peak_of(encoded, memory_mb)
        assert 0.3 * memory_mb * 2**20 < peak <= memory_mb * 2**20 + results
        assert blocks > 1


# Half precision


def in_half(encoded: Encoded, precision: str) -> Encoded:
    """Frame embeddings in half precision and query embeddings rounded to it, as encoding returns them."""
    dtype = PRECISIONS[precision]
    frames = {name: [rows.to(dtype) for rows in own] for name, own in encoded.frames.items()}
    return Encoded(frames, {name: rows.to(dtype).float() for name, rows in encoded.vectors.items()})


@pytest.mark.parametrize("precision", HALVES)
def test_half_precision_products_are_exact_and_summed_in_float32(precision: str) -> None:
    encoded = in_half(random_encoded(30, 20, 9, width=48), precision)
    corpus = encoded.corpus()
    scores = Scorer(corpus, settings_of(0.3, 8)).scores(encoded.vectors)
    expected = encoded.scores(0.3)
    for name, scores_qV in scores.items():
        assert scores_qV.dtype == torch.float32
        torch.testing.assert_close(scores_qV, expected[name], atol=1e-6, rtol=1e-5)
        assert scores_qV.unique().numel() == scores_qV.numel()  # in half precision hundreds would be equal
    for name in BRANCHES:
        assert corpus.frames[name].values.dtype == PRECISIONS[precision]
        assert corpus.video(3)[name].dtype == torch.float32


def test_matmul_precision_is_restored() -> None:
    before = torch.get_float32_matmul_precision()
    with contextlib.suppress(KeyboardInterrupt), matmul_precision(torch.bfloat16):
        assert torch.get_float32_matmul_precision() == "medium"
        raise KeyboardInterrupt
    assert torch.get_float32_matmul_precision() == before
    with matmul_precision(torch.float32):
        assert torch.get_float32_matmul_precision() == before
