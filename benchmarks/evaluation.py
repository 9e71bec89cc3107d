"""Time and memory of scoring all captions against all videos: ours, the matmuls alone, and the published code.

    python benchmarks/evaluation.py                                     # Charades: 1,334 videos, 3,720 captions
    python benchmarks/evaluation.py --videos 2179 --captions 10895      # TVR
    python benchmarks/evaluation.py --videos 17435 --captions 87175 --lengths mixed --only ours --only products
    python benchmarks/evaluation.py --lengths mixed --eval_amp bf16     # videos of 8 to 128 frames, bf16
    python benchmarks/evaluation.py --memory                            # MiB beyond frame embeddings and queries
    python benchmarks/evaluation.py --growth                            # scaling with videos, captions and frames

Random frames, two branches. "products" are the float32 matmuls of the valid frames. The published code pads all videos
to the longest and projects all frames again for every 50 captions, with PyTorch's default matmul precision; all others
use the settings of an evaluation. Frames are generated in chunks and kept only for programs that read them again: the
published code and, with half-precision embeddings, the products. With one thread, CPU time is measured.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import method  # noqa: F401 (sets OpenMP variables before torch is imported)

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import (
    DEVICE,
    alternate,
    as_published,
    as_trained,
    clock,
    compare,
    machine,
    peak_memory_mb,
    reset_peak_memory,
)
from method.data.captions import Caption
from method.evaluation.corpus import Corpus, QuerySet
from method.evaluation.frame_embeddings import FrameEmbeddings
from method.evaluation.metrics import ranks_of
from method.evaluation.ranking import rank
from method.evaluation.row_buffer import RowBuffer
from method.evaluation.scorer import ScoringSettings
from method.ops.precision import PRECISIONS, enable_fast_matmul

WIDTH, PUBLISHED_BLOCK = 384, 50
CHUNK_VIDEOS = 512
BRANCHES = ("action", "object")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the times after checking that our ranks agree with the published code, or the memory."""
    options = _parser().parse_args(arguments)
    if options.growth:
        growth(options)
        return
    enable_fast_matmul(DEVICE)
    case = Case(options.videos, options.captions, options.frames, options.lengths, options.eval_amp)
    keys = sum(own.values.nbytes for own in case.corpus.frames.values()) / 2**20
    if options.memory:
        seconds, mib = case.cost(options.memory_mb)
        print(f"{seconds:.2f} s, {mib:.0f} MiB beyond {keys:.0f} MiB of frame embeddings")
        return
    case.check_equal(options.memory_mb)
    programs = case.programs(options.memory_mb)
    chosen = {name: program for name, program in programs.items() if not options.only or name in options.only}
    print(f"{machine()}; {options.videos} videos of {options.frames} frames ({options.lengths}), {options.captions} "
        f"captions, amp {options.eval_amp}; {case.operations / 1e9:.0f} GFLOP of matmuls")  # fmt: skip
    print(compare(alternate(chosen, options.rounds), next(iter(chosen))))
    print(f"peak memory {peak_memory_mb():.0f} MiB, {keys:.0f} MiB of them frame embeddings")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=1334)
    parser.add_argument("--captions", type=int, default=3720)
    parser.add_argument("--frames", type=int, default=128, help="frames of the longest video")
    parser.add_argument("--lengths", choices=("equal", "mixed"), default="equal")
    parser.add_argument("--eval_amp", choices=tuple(PRECISIONS), default="off", help="our precision")
    parser.add_argument("--memory_mb", type=int, default=512, help="as --eval_memory_mb")
    parser.add_argument("--only", choices=("products", "ours", "published"), action="append")
    parser.add_argument("--memory", action="store_true", help="only our time and memory")
    parser.add_argument(
        "--growth", action="store_true", help="time and memory with 2 and 4 times the videos, captions and frames"
    )
    parser.add_argument("--rounds", type=int, default=3)
    return parser


def settings(memory_mb: int) -> ScoringSettings:
    """Both branches with equal weights."""
    return ScoringSettings(dict.fromkeys(BRANCHES, 0.5), memory_mb)


def video_lengths(videos: int, frames: int, lengths: str) -> list[int]:
    """Frames of each video: the maximum, or 'mixed' lengths like those of TVR clips."""
    if lengths == "equal":
        return [frames] * videos
    mixed = torch.normal(0.45, 0.2, (videos,)).mul(frames).round().clamp(min(8, frames), frames)
    return [int(length) for length in mixed.tolist()]


class Case:
    """Random encoded videos and captions."""

    @torch.inference_mode()
    def __init__(self, videos: int, captions: int, frames: int, lengths: str, amp: str) -> None:
        torch.manual_seed(0)
        self.lengths = video_lengths(videos, frames, lengths)
        self.weight_DD = torch.randn(WIDTH, WIDTH, device=DEVICE) / WIDTH**0.5
        self.vectors = {name: F.normalize(torch.randn(captions, WIDTH, device=DEVICE), dim=-1) for name in BRANCHES}
        kept = RowBuffer(WIDTH, PRECISIONS[amp], DEVICE)
        for _, frames_ND in self.chunks():
            kept.append(F.normalize(frames_ND @ self.weight_DD.t(), dim=-1))
        action = FrameEmbeddings.join(kept.drain(), self.lengths)
        joined = {"action": action, "object": FrameEmbeddings(action.values.clone(), action.lengths)}
        self.corpus = Corpus([f"v{i}" for i in range(videos)], joined)
        owners = [f"v{i % videos}" for i in range(captions)]
        self.queries = QuerySet([Caption(f"{v}#enc#{i}", v, "") for i, v in enumerate(owners)], self.vectors)

    def chunks(self) -> Iterator[tuple[list[int], Tensor]]:
        """Yield chunks of videos as lengths and frames (N, D), the same at each call."""
        generator = torch.Generator(DEVICE).manual_seed(0)
        for start in range(0, len(self.lengths), CHUNK_VIDEOS):
            own = self.lengths[start : start + CHUNK_VIDEOS]
            yield own, torch.randn(sum(own), WIDTH, generator=generator, device=DEVICE)

    @cached_property
    def kept(self) -> list[tuple[list[int], Tensor]]:
        """All chunks, kept from the first access on."""
        return list(self.chunks())

    @property
    def operations(self) -> int:
        """FLOPs of the matmuls of all frames and captions."""
        return 2 * sum(self.lengths) * WIDTH * len(self.queries.captions) * len(BRANCHES)

    def check_equal(self, memory_mb: int) -> None:
        """AssertionError unless our ranks of the first captions agree with the published code; skipped for bf16."""
        if self.corpus.frames["action"].values.dtype != torch.float32:
            return
        few = min(PUBLISHED_BLOCK, len(self.queries.captions))
        # In chunks: the score of a video does not depend on other videos.
        scores_QV = torch.cat([self.published([chunk], few) for chunk in self.chunks()], 1)
        expected = ranks_of(scores_QV.cpu(), torch.arange(few) % len(self.lengths))
        found = rank(self.corpus, self.queries.subset(slice(few)), settings(memory_mb)).ranks["fused"]
        # Rounding may swap neighbours.
        torch.testing.assert_close(torch.from_numpy(found), expected, atol=2, rtol=0)

    def programs(self, memory_mb: int) -> dict[str, Callable[[], object]]:
        """Our ranking, scoring as published, and the matmuls alone."""
        return {
            "products": as_trained(self.products, DEVICE),
            "ours": as_trained(lambda: self.ours(memory_mb), DEVICE),
            "published": as_published(lambda: self.published(self.kept, len(self.queries.captions))),
        }

    @torch.inference_mode()
    def products(self) -> None:
        """The matmuls alone, in blocks whose results fit in the CPU cache."""
        for name, vectors_QD in self.vectors.items():
            keys_ND = self.corpus.frames[name].values
            rows = [keys_ND] if keys_ND.dtype == torch.float32 else [frames_ND for _, frames_ND in self.kept]
            for block_qD in vectors_QD.split(1024):
                for rows_nD in itertools.chain.from_iterable(rows_ND.split(4096) for rows_ND in rows):
                    rows_nD @ block_qD.t()

    def ours(self, memory_mb: int) -> None:
        """Ranks by the action, object and fused scores."""
        rank(self.corpus, self.queries, settings(memory_mb))

    @torch.inference_mode()
    def published(self, chunks: Iterable[tuple[list[int], Tensor]], captions: int) -> Tensor:
        """Fused scores (captions, v) of the first captions for the videos of these chunks."""
        frames = [frames_LD for own, frames_ND in chunks for frames_LD in frames_ND.split(own)]
        lengths = torch.tensor([len(frames_LD) for frames_LD in frames])
        padded_vLD = torch.nn.utils.rnn.pad_sequence(frames, batch_first=True)
        valid_vL = torch.arange(padded_vLD.shape[1]) < lengths[:, None]
        padding_vL1 = ~valid_vL[..., None].to(padded_vLD.device)
        parts = []
        for start in range(0, captions, PUBLISHED_BLOCK):
            best = []
            for vectors_QD in self.vectors.values():
                keys_vLD = F.normalize(padded_vLD @ self.weight_DD.t(), dim=-1)
                dots_vLq = keys_vLD @ vectors_QD[start : start + PUBLISHED_BLOCK].t()
                best.append(dots_vLq.masked_fill(padding_vL1, -1e10).amax(1).t())
            parts.append(torch.stack(best).mean(0))
        return torch.cat(parts)

    def cost(self, memory_mb: int) -> tuple[float, float]:
        """Seconds of our ranking, and MiB it needs beyond frame embeddings and queries."""
        rank(self.corpus, self.queries.subset(slice(2)), settings(1))  # libraries are loaded at the first matmul
        reset_peak_memory()
        held, started = peak_memory_mb(), clock()
        self.ours(memory_mb)
        return clock() - started, peak_memory_mb() - held


def growth(options: argparse.Namespace) -> None:
    """Print time and memory for the given sizes, and with one of them doubled and quadrupled, in separate processes."""
    sizes = {"videos": options.videos, "captions": options.captions, "frames": options.frames}
    print(f"{machine()}, --memory_mb {options.memory_mb}")
    for factor, size in ((1, "videos"), *((n, size) for size in sizes for n in (2, 4))):
        changed = {**sizes, size: sizes[size] * factor}
        words = [word for name, value in changed.items() for word in (f"--{name}", str(value))]
        command = [sys.executable, str(Path(__file__)), "--memory", *words, "--lengths", options.lengths]
        command += ["--memory_mb", str(options.memory_mb), "--eval_amp", options.eval_amp]
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        print(", ".join(f"{value:6d} {name}" for name, value in changed.items()) + f": {found}")


if __name__ == "__main__":
    main()
