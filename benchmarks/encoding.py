"""Time and memory of encoding the videos of a corpus, compared with the published code, which pads each batch.

    python benchmarks/encoding.py                                       # 200 videos of 128 frames, Charades launch
    python benchmarks/encoding.py --lengths mixed --videos 400
    python benchmarks/encoding.py --memory --lengths mixed --videos 4000      # our memory beyond the frame embeddings
    python benchmarks/encoding.py --eval_amp bf16 --only ours

Random features, generated one batch at a time. Both start from the same weights, and the embeddings of two videos must
agree before anything is timed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import method  # noqa: F401 (sets OpenMP variables before torch is imported)

import torch

from benchmarks.evaluation import video_lengths
from benchmarks.measure import DEVICE, alternate, as_published, as_trained, clock, compare, machine, peak_memory_mb
from benchmarks.step import LAUNCH
from method.data.batch import VideoBatch
from method.data.preprocessing import normalize_rows
from method.data.ragged import Ragged
from method.evaluation.corpus import encode_corpus
from method.model.published import to_published
from method.model.retrieval import RetrievalModel
from method.ops.precision import PRECISIONS, enable_fast_matmul
from tests.helpers.reference_model import NaiveModel, split_values

WIDTHS = {"action": 1024, "object": 512}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the times after checking that both agree, or our memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=200)
    parser.add_argument("--batch", type=int, default=200, help="as --eval_context_bsz")
    parser.add_argument("--frames", type=int, default=128, help="frames of the longest video")
    parser.add_argument("--lengths", choices=("equal", "mixed"), default="equal")
    parser.add_argument("--extent", choices=("padded", "valid"), default="padded")
    parser.add_argument("--eval_amp", choices=tuple(PRECISIONS), default="off", help="our precision")
    parser.add_argument("--only", choices=("ours", "published"))
    parser.add_argument("--memory", action="store_true", help="only our time and memory")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    case = Case(options.videos, options.batch, options.frames, options.lengths, options.extent)
    print(
        f"{machine()}; {options.videos} videos of {options.frames} frames ({options.lengths}), {options.batch} at a "
        f"time, {options.extent}, amp {options.eval_amp}"
    )
    if options.memory:
        enable_fast_matmul(DEVICE)
        case.report_memory(options.eval_amp)
        return
    case.check_equal()
    programs: dict[str, Callable[[], object]] = {
        "published": as_published(case.published),
        "ours": as_trained(lambda: case.ours(options.eval_amp), DEVICE),
    }
    chosen = {name: program for name, program in programs.items() if options.only in (None, name)}
    print(compare(alternate(chosen, options.rounds), next(iter(chosen))))


class Case:
    """A model, a naive implementation with the same weights, and random videos."""

    def __init__(self, videos: int, batch: int, frames: int, lengths: str, extent: str) -> None:
        torch.manual_seed(0)
        self.model = RetrievalModel(replace(LAUNCH, fusion_extent=extent)).eval()  # type: ignore[arg-type]
        self.naive = NaiveModel(to_published(self.model.state_dict(), self.model.architecture), self.model.architecture)
        self.model.to(DEVICE)
        self.naive.to(DEVICE).eval()
        self.lengths = video_lengths(videos, frames, lengths)
        self.batch = batch

    def batches(self) -> Iterator[VideoBatch]:
        """Batches of the videos, the same at each call."""
        generator = torch.Generator().manual_seed(0)
        for start in range(0, len(self.lengths), self.batch):
            own = self.lengths[start : start + self.batch]
            streams = {
                name: Ragged.of([normalize_rows(torch.randn(length, width, generator=generator)) for length in own])
                for name, width in WIDTHS.items()
            }
            names = tuple(f"v{start + index}" for index in range(len(own)))
            yield VideoBatch(names, streams, (), None, torch.empty(0, dtype=torch.long))

    def ours(self, precision: str) -> None:
        """Encode the corpus as an evaluation does."""
        encode_corpus(self.model, self.batches(), DEVICE, precision)

    @torch.inference_mode()
    def published(self) -> None:
        """Encode padded videos once; the published code repeats part of it for every 50 captions."""
        for batch in self.batches():
            streams = batch.to(DEVICE).streams
            self.naive.encode_videos(streams["action"], streams["object"])

    @torch.inference_mode()
    def check_equal(self) -> None:
        """AssertionError unless both give two videos the same frame embeddings."""
        streams = next(self.batches()).to(DEVICE).streams
        few = {name: Ragged.of(split_values(rows)[:2]) for name, rows in streams.items()}
        expected = self.naive.encode_videos(few["action"], few["object"])
        for name, keys in self.model.encode_videos(few).items():
            padded, valid = expected[name]
            torch.testing.assert_close(keys.values, padded[valid], atol=1e-4, rtol=1e-4)

    def report_memory(self, precision: str) -> None:
        """Print peak memory beyond the frame embeddings after each eighth of the videos."""
        first, started, done, kept = peak_memory_mb(), clock(), 0, 0
        steps = max(1, -(-len(self.lengths) // self.batch) // 8)

        def reporting() -> Iterator[VideoBatch]:
            nonlocal done, kept
            for index, batch in enumerate(self.batches()):
                yield batch
                done += len(batch.video_ids)
                kept += sum(len(rows.values) for rows in batch.streams.values()) * LAUNCH.hidden_size
                if index % steps == steps - 1:
                    self._print_memory(done, kept * PRECISIONS[precision].itemsize, first)

        encode_corpus(self.model, reporting(), DEVICE, precision)
        self._print_memory(done, kept * PRECISIONS[precision].itemsize, first)
        print(f"{clock() - started:.1f} s")

    def _print_memory(self, videos: int, kept: int, first: float) -> None:
        keys = kept / 2**20
        beyond = peak_memory_mb() - first - keys
        print(f"{videos:6d} videos: {keys:5.0f} MiB of embeddings, peak {beyond:5.0f} MiB beyond them")


if __name__ == "__main__":
    main()
