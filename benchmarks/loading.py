"""Time to load the data of an epoch: as published, from the feature files, and from the feature cache.

    python benchmarks/loading.py                                # 5% of Charades: 267 videos, 620 captions
    python benchmarks/loading.py --share 0.5 --workers 8
    python benchmarks/loading.py --folder /scratch --step 0.1   # also the wait of a training with steps of 0.1 s

Writes random features to a temporary folder. The published code reads, averages, normalises and pads every item in
every epoch; its batches must equal ours before anything is timed. "plain copy" reads the bytes of an epoch from the
cache files into new memory in chunks of 64 MiB: the lower bound for everything that reads from them. Times are
wall-clock times, since workers and disks count.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import method  # noqa: F401 (sets OpenMP variables before torch is imported)

import h5py
import numpy as np
import torch
from torch import Tensor

from benchmarks.measure import alternate, compare, compare_to_bound, machine
from method.data.batch import EpochBatches, Loader, VideoBatch
from method.data.cache.feature_cache import with_cache
from method.data.cache.gpu_tables import on_device
from method.data.dataset import FeatureReader, TrainingVideos
from method.data.features import FeatureFile
from method.data.splits import Split, check_split, sampled_lengths
from tests.helpers.reference_model import pad, split_values

WIDTHS, QUERY_WIDTH, FRAMES, MAX_TOKENS = {"i3d_feat": 1024, "clip_feat": 512}, 1024, 128, 30
VIDEOS, CAPTIONS, BATCH = 5338, 12408, 128
PLAIN_COPY = "plain copy"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the times after checking that all batches are equal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=0.05, help="share of the videos of Charades")
    parser.add_argument("--stored", type=int, default=200, help="mean rows per stream in the feature file")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="folder for features and cache")
    parser.add_argument(
        "--step", type=float, help="also print the share of time spent waiting for data with steps of so many seconds"
    )
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        data = Data(Path(folder), options.share, options.stored, options.workers)
        print(f"{machine()}; {len(data.order)} batches, {data.size / 1e9:.2f} GB an epoch")
        check_equal(data)
        seconds = alternate(data.programs(), options.rounds, time.perf_counter)
        print(compare(seconds, "published"))
        print(
            compare_to_bound(seconds, dict.fromkeys([*data.loaders(), PLAIN_COPY], data.size / 1e9), PLAIN_COPY, "GB")
        )
        for name, loader in data.loaders().items() if options.step else ():
            print(f"{name}: waited for {waiting(loader, options.step):.1%} of an epoch of {options.step} s a step")


class Data:
    """Random features of some videos in a folder, and the ways to load an epoch of them."""

    def __init__(self, folder: Path, share: float, stored: int, workers: int) -> None:
        self.folder, self.workers = folder, workers
        videos = max(2, round(VIDEOS * share))
        captions = [f"v{i % videos}#enc#{i // videos} a person" for i in range(round(CAPTIONS * share))]
        (folder / "captions.txt").write_text("\n".join(captions))
        _write_features(folder, videos, [caption.split()[0] for caption in captions], stored)
        self.order = EpochBatches(videos, BATCH, seed=0)
        self.reader = self.open_reader()
        self.split: Split = check_split("training split", folder / "captions.txt", self.reader)
        counts = sampled_lengths(self.reader, [self.split])
        widths = {key: table.width for key, table in self.reader.hdf5_sources.items()}
        self.size = sum(sum(counts[key].values()) * width * 4 for key, width in widths.items())
        self.cached = with_cache(self.open_reader(), [self.split], folder / "cache", workers)

    def open_reader(self) -> FeatureReader:
        """A reader of the feature files."""
        streams = {"action": ("i3d_feat", WIDTHS["i3d_feat"]), "object": ("clip_feat", WIDTHS["clip_feat"])}
        files = (FeatureFile(self.folder / "videos.hdf5"), FeatureFile(self.folder / "texts.hdf5"))
        return FeatureReader(*files, streams, QUERY_WIDTH, FRAMES, MAX_TOKENS)

    def loader(self, reader: FeatureReader, workers: int) -> Loader:
        """The batches of an epoch."""
        return Loader(TrainingVideos(reader, self.split.captions), self.order, workers, pinned=False)

    def loaders(self) -> dict[str, Loader]:
        """Loaders for epochs after the first."""
        return {
            "cache, no workers": self.loader(self.cached, 0),
            f"cache, {self.workers} workers": self.loader(self.cached, self.workers),
            "in memory": self.loader(on_device(self.cached, self.split, torch.device("cpu")), 0),
        }

    def programs(self) -> dict[str, Callable[[], object]]:
        """The timed programs, one epoch each."""
        files = {
            "files, no workers": self.loader(self.reader, 0),
            f"files, {self.workers} workers": self.loader(self.reader, self.workers),
        }
        return {
            "published": lambda: [None for _ in self.published()],
            "first, building the cache": self.first,
            **{name: partial(_run_through, own) for name, own in {**files, **self.loaders()}.items()},
            PLAIN_COPY: self.plain_copy,
        }

    def first(self) -> None:
        """Build the cache and load an epoch from it."""
        folder = self.folder / "another cache"
        _run_through(self.loader(with_cache(self.open_reader(), [self.split], folder, self.workers), self.workers))
        shutil.rmtree(folder)

    def plain_copy(self) -> None:
        """Read as many bytes as an epoch has."""
        left = self.size
        for path in itertools.cycle(sorted((self.folder / "cache").rglob("*.rows"))):
            with path.open("rb", buffering=0) as file:
                while count := file.readinto(torch.empty(min(left, 1 << 26), dtype=torch.uint8).numpy().data):
                    left -= count
                    if not left:
                        return

    def published(self) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
        """The batches of an epoch read item by item: padded features and masks."""
        dataset = TrainingVideos(self.reader, self.split.captions)
        names = [self.folder / name for name in ("videos.hdf5", "texts.hdf5")]
        with h5py.File(names[0], locking=False) as videos, h5py.File(names[1], locking=False) as texts:
            for drawn in self.order:
                own = [dataset.videos[index] for index in drawn.indices]
                streams = {
                    branch: pad([_normalized(_averaged(videos[video_id][key][()])) for video_id, _ in own])
                    for branch, (key, _) in self.reader.streams.items()
                }
                captions = [caption.id for _, captions in own for caption in captions]
                yield {**streams, "tokens": pad([_normalized(texts[name][()])[:MAX_TOKENS] for name in captions])}


def _write_features(folder: Path, videos: int, captions: Sequence[str], stored: int) -> None:
    random = np.random.default_rng(0)
    with h5py.File(folder / "videos.hdf5", "w") as file:
        for number, (key, width) in itertools.product(range(videos), WIDTHS.items()):
            rows = int(random.uniform(0.5, 1.5) * stored)
            file[f"v{number}/{key}"] = random.standard_normal((rows, width), dtype=np.float32)
    with h5py.File(folder / "texts.hdf5", "w") as file:
        for caption in captions:
            file[caption] = random.standard_normal((int(random.integers(5, 31)), QUERY_WIDTH), dtype=np.float32)


def _averaged(rows: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    if len(rows) <= FRAMES:
        return rows
    edges = [min(int(np.round(i / FRAMES * len(rows))), len(rows) - 1) for i in range(FRAMES + 1)]
    return np.stack([rows[a:b].mean(0) if a < b else rows[a] for a, b in itertools.pairwise(edges)])


def _normalized(rows: np.ndarray) -> Tensor:  # type: ignore[type-arg]
    return torch.from_numpy(rows / (np.linalg.norm(rows, axis=1, keepdims=True) + 1e-5))


def _run_through(loader: Loader) -> None:
    for _ in loader:
        pass


def waiting(loader: Loader, step: float) -> float:
    """Share of the second epoch spent waiting for data when a step takes `step` seconds."""
    _run_through(loader)
    waited, started = 0.0, time.perf_counter()
    requested = started
    for _ in loader:
        waited += time.perf_counter() - requested
        time.sleep(step)
        requested = time.perf_counter()
    return waited / (time.perf_counter() - started)


def check_equal(data: Data) -> None:
    """AssertionError unless the cache is bit-identical to the feature files, and both equal the published code."""
    # All batches, with workers: a loader that skipped some would look fast.
    loaders = data.loader(data.reader, 0), data.loader(data.cached, data.workers)
    for naive, files, cached in zip(data.published(), *loaders, strict=True):
        assert isinstance(files, VideoBatch)
        assert files.tokens is not None
        assert files.video_ids == cached.video_ids
        for name, rows in {**files.streams, "tokens": files.tokens}.items():
            assert torch.equal(rows.values, (cached.tokens if name == "tokens" else cached.streams[name]).values)
            torch.testing.assert_close(pad(split_values(rows))[0], naive[name][0], atol=1e-6, rtol=1e-5)


if __name__ == "__main__":
    main()
