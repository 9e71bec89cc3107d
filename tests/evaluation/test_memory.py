"""Memory that a process takes from the system while it evaluates, beyond the sum of its tensors."""

import subprocess
import sys

import pytest
import torch

from method.evaluation import row_buffer
from method.evaluation.row_buffer import RowBuffer
from tests.helpers.paths import REPOSITORY

CPU = torch.device("cpu")

# At these sizes, tensors kept from each block fragmented 1,100 MiB.
RANKING = """
import torch
from method.data.captions import Caption
from method.evaluation.corpus import Corpus, QuerySet
from method.evaluation.ranking import rank
from method.evaluation.frame_embeddings import FrameEmbeddings
from method.evaluation.scorer import ScoringSettings
from method.runtime.hardware import memory_mb

videos, captions = 4000, 20000
torch.manual_seed(0)
keys = {name: FrameEmbeddings(torch.randn(2 * videos, 8), (2,) * videos) for name in ("action", "object")}
owners = [f"v{i % videos}" for i in range(captions)]
queries = QuerySet([Caption(str(i), v, "") for i, v in enumerate(owners)], {n: torch.randn(captions, 8) for n in keys})
corpus = Corpus([f"v{i}" for i in range(videos)], keys)
settings = ScoringSettings({"action": 0.5, "object": 0.5}, memory_mb=64)
rank(corpus, queries.subset(slice(2)), settings)
before = memory_mb(torch.device("cpu"))
rank(corpus, queries, settings)
print(memory_mb(torch.device("cpu")) - before)
"""


def test_many_blocks_take_no_more_memory_than_one() -> None:
    done = subprocess.run(
        [sys.executable, "-c", RANKING], cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=120
    )
    assert 10 < float(done.stdout) < 3 * 64  # includes fragmentation


@pytest.mark.parametrize("batches", [[], [0], [3], [1, 2, 5, 0, 9, 4], [4, 4], [11]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_are_drained_in_order(batches: list[int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_buffer, "_CHUNK_BYTES", 4 * 3 * dtype.itemsize)  # four rows
    rows = [torch.randn(count, 3) for count in batches]
    buffer = RowBuffer(3, dtype, CPU)
    for own in rows:
        buffer.append(own)
    chunks = list(buffer.drain())
    joined = torch.cat([torch.empty(0, 3), *rows])
    assert [len(chunk) for chunk in chunks[:-1]] == [4] * (len(chunks) - 1)
    assert torch.equal(torch.cat(chunks), joined.to(dtype))
    assert list(map(len, buffer.drain())) == [0]


def test_rows_are_copies() -> None:
    rows = torch.ones(2, 3)
    buffer = RowBuffer(3, torch.float32, CPU)
    buffer.append(rows)
    rows.zero_()
    assert next(iter(buffer.drain())).sum() == 6


def test_chunks_are_mapped_separately() -> None:
    buffer = RowBuffer(384, torch.float32, CPU)
    buffer.append(torch.ones(1, 384))
    (chunk,) = buffer.drain()
    assert chunk.untyped_storage().nbytes() > 32 * 2**20 - 384 * 4
