"""Time and memory of a search, beside the time to read the keys once.

    python benchmarks/search.py --videos 1000 10000                       # the exact engine, float32
    python benchmarks/search.py --videos 10000 100000 --dtype bf16        # 100,000 videos of 64 frames: 9.2 GiB of keys
    python benchmarks/search.py --videos 20000 --engine coarse            # also recall
    python benchmarks/search.py --videos 1000 --engine milvus             # Milvus Lite; also recall
    python benchmarks/search.py --videos 1000 --engine milvus --engine_uri http://127.0.0.1:19530 --engine_index HNSW

Keys are random, for two branches: the frames of a video share a direction, and a query is a frame with noise added.
They are written to a file, which is memory-mapped. Each number of videos is measured in a process of its own. "read" is
the sum of all keys: what reading them from memory takes. With one thread, CPU time is measured, except for Milvus.
"Open" includes a first search. Recall is the share of the exact engine's best 10 videos among those found.
"""

from __future__ import annotations

import argparse
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import method  # noqa: F401 (sets OpenMP variables before torch is imported)

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import DEVICE, alternate, clock, machine, peak_memory_mb, reset_peak_memory
from method.evaluation.corpus import Corpus
from method.evaluation.frame_embeddings import FrameEmbeddings
from method.evaluation.scorer import ScoringSettings
from method.ops.precision import enable_fast_matmul
from method.serving.engines import Ranking, SearchEngine
from method.serving.engines.choice import ENGINES, EngineSettings, open_engine
from method.serving.engines.milvus_frames import INDEXES

BRANCHES = ("action", "object")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SETTINGS = ScoringSettings(dict.fromkeys(BRANCHES, 1 / len(BRANCHES)))
QUERIES, BEST, CHUNK_VIDEOS = 64, 10, 512
HEAD = ("videos", "keys, MiB", "open, s", "read, ms", "1 query", "of 4", "of 16", "of 64", "peak beyond keys, MiB")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table with a row for each number of videos."""
    options = _parser().parse_args(arguments)
    enable_fast_matmul(DEVICE)
    if options.row:
        print(row(options, options.videos[0]))
        return
    head = (*HEAD, f"recall of the best {BEST}") if options.engine != "exact" else HEAD
    print(f"{machine()}; {options.frames} frames a video, width {options.width}, "
        f"{len(BRANCHES)} branches, {options.dtype}; ms per query, alone and in batches")  # fmt: skip
    print("| " + " | ".join(head) + " |\n|" + " --- |" * len(head), flush=True)
    words = list(sys.argv[1:] if arguments is None else arguments)
    for videos in options.videos:
        command = [sys.executable, str(Path(__file__)), *words, "--row", "--videos", str(videos)]
        print(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip(), flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, nargs="+", default=[1000, 10000])
    parser.add_argument("--frames", type=int, default=64, help="of a video")
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp32")
    parser.add_argument("--engine", choices=ENGINES, default="exact")
    parser.add_argument("--engine_candidates", type=int, default=1000, help="of --engine coarse")
    parser.add_argument("--engine_uri", help="of --engine milvus (default: a temporary file)")
    parser.add_argument("--engine_index", choices=tuple(INDEXES), default="AUTOINDEX")
    parser.add_argument("--folder", type=Path, help="where keys are written (default: that of temporary files)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--row", action="store_true", help="print the row of the first number of videos alone")
    return parser


def row(options: argparse.Namespace, videos: int) -> str:
    """The row of the table for a number of videos."""
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        corpus = write_corpus(Path(folder), videos, options.frames, options.width, DTYPES[options.dtype])
        queries = make_queries(corpus, options.frames)
        uri = options.engine_uri or str(Path(folder) / "frames.db")
        started = time.perf_counter()
        chosen = EngineSettings(options.engine, options.engine_candidates, uri, options.engine_index)
        engine = _open(corpus, chosen)
        _search(engine, queries, 1)()  # means are computed at the first search
        opened = time.perf_counter() - started
        programs = {"read": lambda: read(corpus), **{str(n): _search(engine, queries, n) for n in (1, 4, 16, 64)}}
        read(corpus)
        reset_peak_memory()
        held = peak_memory_mb()
        now = time.perf_counter if options.engine == "milvus" else clock
        seconds = {name: statistics.median(own) for name, own in alternate(programs, options.rounds, now).items()}
        peak = peak_memory_mb() - held
        keys = sum(own.values.nbytes for own in corpus.frames.values()) / 2**20
        times = [1000 * own / max(1, int(name) if name.isdigit() else 1) for name, own in seconds.items()]
        cells = [f"{videos:,}", f"{keys:,.0f}", f"{opened:.2f}", *(f"{own:.1f}" for own in times), f"{peak:.0f}"]
        if options.engine != "exact":
            exact = _open(corpus, EngineSettings()).search(queries, BEST)
            cells.append(f"{100 * recall(engine.search(queries, BEST), exact):.1f}%")
    return "| " + " | ".join(cells) + " |"


@torch.inference_mode()
def write_corpus(folder: Path, videos: int, frames: int, width: int, dtype: torch.dtype) -> Corpus:
    """Random keys in a file for each branch, memory-mapped."""
    generator, keys = torch.Generator().manual_seed(0), {}
    for name in BRANCHES:
        path = folder / name
        values_ND = torch.from_file(str(path), shared=True, size=videos * frames * width, dtype=dtype)
        values_ND = values_ND.view(-1, width)
        for chunk_nD in values_ND.split(CHUNK_VIDEOS * frames):
            shape = (len(chunk_nD) // frames, frames, width)
            own_vLD = torch.randn(shape, generator=generator) + torch.randn(shape[0], 1, width, generator=generator)
            chunk_nD.copy_(F.normalize(own_vLD, dim=-1).flatten(0, 1))
        keys[name] = FrameEmbeddings(values_ND, (frames,) * videos)
    return Corpus([f"v{index}" for index in range(videos)], keys)


def make_queries(corpus: Corpus, frames: int) -> dict[str, Tensor]:
    """Queries (QUERIES, D) near a frame of a random video, the same one in all branches."""
    generator, vectors = torch.Generator().manual_seed(1), {}
    row_Q = torch.randint(len(corpus.video_ids) * frames, (QUERIES,), generator=generator)
    for name, own in corpus.frames.items():
        frames_QD = own.values[row_Q].float()
        noise_QD = torch.randn(frames_QD.shape, generator=generator) / math.sqrt(frames_QD.shape[1])
        vectors[name] = F.normalize(frames_QD + noise_QD, dim=-1).to(own.values.dtype).float().to(DEVICE)
    return vectors


def _open(corpus: Corpus, settings: EngineSettings) -> SearchEngine:
    return open_engine(settings, corpus, SETTINGS, DEVICE, dict.fromkeys(BRANCHES, "benchmark"), rebuild=True)


def _search(engine: SearchEngine, queries: dict[str, Tensor], count: int) -> Callable[[], object]:
    own = {name: vectors_QD[:count] for name, vectors_QD in queries.items()}
    return lambda: engine.search(own, BEST)


def read(corpus: Corpus) -> float:
    """Read all keys once: their sum, as if they were float32."""
    return sum(float(own.values.view(torch.float32).sum()) for own in corpus.frames.values())


def recall(found: Sequence[Ranking], exact: Sequence[Ranking]) -> float:
    """The share of the videos that the exact engine found among those found."""
    pairs = [({own.index for own in a.best}, {own.index for own in b.best}) for a, b in zip(found, exact, strict=True)]
    return sum(len(own & best) for own, best in pairs) / max(1, sum(len(best) for _, best in pairs))


if __name__ == "__main__":
    main()
