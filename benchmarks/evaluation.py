"""Time of scoring all captions against all videos: ours, a plain matrix product of that size, and the published way.

    python benchmarks/evaluation.py                                  # Charades: 1,334 videos, 3,720 captions
    python benchmarks/evaluation.py --videos 2179 --queries 10895    # TVR

Random frames of 128 a video, one branch. The published program projects all frames to keys again for every 50 captions.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
import torch.nn.functional as F

from benchmarks.measure import alternate, compare, machine, peak_memory_mb
from method.data.captions import Caption
from method.data.ragged import Layout, Ragged
from method.evaluation.corpus import Corpus, QuerySet, Scorer
from method.evaluation.metrics import ranks_of

WIDTH, FRAMES, PUBLISHED_BLOCK = 384, 128, 50


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the times, after the scores of all three ways have been found equal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=1334)
    parser.add_argument("--queries", type=int, default=3720)
    parser.add_argument("--memory_mb", type=int, default=512)
    parser.add_argument("--only", choices=("product", "ours", "published"), action="append")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    programs = make_programs(options.videos, options.queries, options.memory_mb)
    chosen = {name: program for name, program in programs.items() if not options.only or name in options.only}
    print(f"{machine()}; {options.videos} videos of {FRAMES} frames, {options.queries} captions")
    print(compare(alternate(chosen, options.rounds), next(iter(chosen))))
    print(f"peak memory of all of them: {peak_memory_mb():.0f} MiB")


@torch.inference_mode()
def make_programs(videos: int, queries: int, memory_mb: int) -> dict[str, Callable[[], object]]:
    """Ranking by ours, scoring by the published way, and nothing but the matrix product."""
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    frames_ND = torch.randn(videos * FRAMES, WIDTH, device=device)
    weight_DD = torch.randn(WIDTH, WIDTH, device=device) / WIDTH**0.5
    vectors_QD = F.normalize(torch.randn(queries, WIDTH, device=device), dim=-1)
    keys_ND = F.normalize(frames_ND @ weight_DD.t(), dim=-1)
    corpus = Corpus(
        [f"v{i}" for i in range(videos)], {"action": Ragged(keys_ND, Layout.of([FRAMES] * videos).to(device))}
    )
    captions = [Caption(f"v{i % videos}#enc#{i}", f"v{i % videos}", "") for i in range(queries)]
    query_set = QuerySet(captions, {"action": vectors_QD})
    right_Q = torch.arange(queries, device=device) % videos

    @torch.inference_mode()
    def published() -> torch.Tensor:
        parts = []
        for start in range(0, queries, PUBLISHED_BLOCK):
            keys = F.normalize(frames_ND @ weight_DD.t(), dim=-1)
            dots_Nq = keys @ vectors_QD[start : start + PUBLISHED_BLOCK].t()
            parts.append(dots_Nq.view(videos, FRAMES, -1).max(1).values.t())
        return torch.cat(parts)

    @torch.inference_mode()
    def product() -> None:
        for block_qD in vectors_QD.split(1024):
            for keys_nD in keys_ND.split(32768):
                keys_nD @ block_qD.t()

    @torch.inference_mode()
    def ours() -> torch.Tensor:
        blocks = Scorer(corpus, memory_mb).blocks(query_set, 0.5)
        return torch.cat([ranks_of(scores["fused"], right_Q[part]) for part, scores in blocks])

    expected = published()
    torch.testing.assert_close(ours(), ranks_of(expected, right_Q), atol=2, rtol=0)  # rounding may swap neighbours
    return {"product": product, "ours": ours, "published": published}


if __name__ == "__main__":
    main()
