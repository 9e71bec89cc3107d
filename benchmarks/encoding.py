"""Time and memory of encoding the videos of a corpus: ours beside the published way, padded to the longest of a batch.

    python benchmarks/encoding.py                                       # 200 videos of 128 frames, Charades launch
    python benchmarks/encoding.py --lengths mixed --videos 400
    python benchmarks/encoding.py --memory --lengths mixed --videos 4000      # MiB of ours beside the keys, on the way
    python benchmarks/encoding.py --eval_amp bf16 --only ours

Random features, made a batch at a time. Both start from the same weights, and some of their keys must agree before
anything is timed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import method  # noqa: F401 (before torch, whose threads it tells how to wait)

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
    """Print the times, after some keys of both have been found equal; or the memory of ours."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=200)
    parser.add_argument("--batch", type=int, default=200, help="as --eval_context_bsz")
    parser.add_argument("--frames", type=int, default=128, help="frames of a video, or of the longest")
    parser.add_argument("--lengths", choices=("equal", "mixed"), default="equal")
    parser.add_argument("--extent", choices=("padded", "valid"), default="padded")
    parser.add_argument("--eval_amp", choices=tuple(PRECISIONS), default="off", help="of ours")
    parser.add_argument("--only", choices=("ours", "published"))
    parser.add_argument("--memory", action="store_true", help="seconds and memory of ours alone")
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
    """A model, its naive twin, and random videos."""

    def __init__(self, videos: int, batch: int, frames: int, lengths: str, extent: str) -> None:
        torch.manual_seed(0)
        self.model = RetrievalModel(replace(LAUNCH, fusion_extent=extent)).eval()  # type: ignore[arg-type]
        self.twin = NaiveModel(to_published(self.model.state_dict(), self.model.architecture), self.model.architecture)
        self.model.to(DEVICE)
        self.twin.to(DEVICE).eval()
        self.lengths = video_lengths(videos, frames, lengths)
        self.batch = batch

    def batches(self) -> Iterator[VideoBatch]:
        """The videos, the same each time."""
        generator = torch.Generator().manual_seed(0)
        for start in range(0, len(self.lengths), self.batch):
            own = self.lengths[start : start + self.batch]
            streams = {
                name: Ragged.of([normalize_rows(torch.randn(length, width, generator=generator)) for length in own])
                for name, width in WIDTHS.items()
            }
            names = tuple(f"v{start + place}" for place in range(len(own)))
            yield VideoBatch(names, streams, (), None, torch.empty(0, dtype=torch.long))

    def ours(self, precision: str) -> None:
        """The corpus as an evaluation encodes it."""
        encode_corpus(self.model, self.batches(), DEVICE, precision)

    @torch.inference_mode()
    def published(self) -> None:
        """Frame keys of padded videos; as published they are encoded again for every 50 captions, here once."""
        for batch in self.batches():
            streams = batch.to(DEVICE).streams
            self.twin.encode_videos(streams["action"], streams["object"])

    @torch.inference_mode()
    def check_equal(self) -> None:
        """AssertionError unless both encode two videos alike."""
        streams = next(self.batches()).to(DEVICE).streams
        few = {name: Ragged.of(split_values(rows)[:2]) for name, rows in streams.items()}
        expected = self.twin.encode_videos(few["action"], few["object"])
        for name, keys in self.model.encode_videos(few).items():
            padded, valid = expected[name]
            torch.testing.assert_close(keys.values, padded[valid], atol=1e-4, rtol=1e-4)

    def report_memory(self, precision: str) -> None:
        """Print what the process held beside the keys after each eighth of the videos, and at most."""
        first, started, done, kept = peak_memory_mb(), clock(), 0, 0
        steps = max(1, -(-len(self.lengths) // self.batch) // 8)

        def watched() -> Iterator[VideoBatch]:
            nonlocal done, kept
            for place, batch in enumerate(self.batches()):
                yield batch
                done += len(batch.video_ids)
                kept += sum(len(rows.values) for rows in batch.streams.values()) * LAUNCH.hidden_size
                if place % steps == steps - 1:
                    self._say(done, kept * PRECISIONS[precision].itemsize, first)

        encode_corpus(self.model, watched(), DEVICE, precision)
        self._say(done, kept * PRECISIONS[precision].itemsize, first)
        print(f"{clock() - started:.1f} s")

    def _say(self, videos: int, kept: int, first: float) -> None:
        keys = kept / 2**20
        print(f"{videos:6d} videos: {keys:5.0f} MiB of keys, at most {peak_memory_mb() - first - keys:5.0f} MiB beside")


if __name__ == "__main__":
    main()
