"""The feature cache: every stream and all token features, preprocessed once, in a file each.

The files are in `<feature file>.cache/` next to the feature file, or in `<feature file>-<digest of its path>.cache/`
below `--feature_cache`, so that datasets can share that folder. `i3d_feat-128.rows` has the frames, at most 128 per
video, of all videos that a run has needed so far. A file is rebuilt when the feature file, a file that this one links
to, or the preprocessing has changed, and when a run needs more items. A run without a usable cache logs why, and reads
the feature files.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from method.data.batch import Loader
from method.data.cache.cached_source import CachedSource
from method.data.cache.rows_file import RowsFile, write_rows
from method.data.dataset import FeatureReader, FeatureSource, HDF5Source
from method.data.ragged import Ragged
from method.data.splits import Split, sampled_lengths
from method.runtime.disk import format_bytes, free_bytes
from method.runtime.errors import InputError, summarize
from method.runtime.files import digest_of, remove_partial_files
from method.runtime.locks import exclusive_lock
from method.runtime.progress import poll, progress_bar

log = logging.getLogger(__name__)

FORMAT = 1  # incremented whenever the preprocessing changes
LEFT_FREE = 1 << 30  # bytes kept free on the disk, for the files of the run
_ITEMS_PER_BATCH = 16
_BYTES_PER_WORKER = 1 << 26
_COMPARED_ITEMS = 8


class _NotCached(Exception):
    """There is no cache, for the reason given."""


class _Unusable(Exception):
    """A file of the cache cannot be used, for the reason given; `kept` are valid items to keep when it is rebuilt."""

    def __init__(self, reason: str, kept: Sequence[str] = ()) -> None:
        super().__init__(reason)
        self.kept = kept


def with_cache(
    reader: FeatureReader, splits: Iterable[Split], location: Path | str | None, workers: int
) -> FeatureReader:
    """A reader that uses the cache, filled first with the items that are missing.

    Of several processes one fills the cache and the others wait for it. What cannot be cached is a warning.

    Args:
        reader: of the feature files.
        splits: whose items to cache.
        location: folder of the cache; None: next to each feature file; 'off': no cache.
        workers: data workers that read the feature files.

    Raises:
        InputError: for features that training would also refuse.
    """
    if location == "off":
        return reader
    folder = Path(location) if location else None
    cached: dict[str, FeatureSource] = {}
    failures: dict[str, str] = {}
    lengths = sampled_lengths(reader, splits)
    for key, source in reader.hdf5_sources.items():
        path = _cache_folder(folder, source.file.path) / f"{key}-{source.max_rows}.rows"
        try:
            cached[key] = _Cache(key, path, source, lengths[key]).open_or_build(workers)
        except _NotCached as reason:
            failures[key] = str(reason)
        except OSError as error:
            failures[key] = f"{error.filename or path}: {error.strerror or error}"
    if failures:
        remedy = "use --feature_cache DIR for another folder, or off"
        log.warning("no feature cache of %s (%s): every epoch reads the feature files; %s",
                    ", ".join(failures), summarize(list(dict.fromkeys(failures.values()))), remedy)  # fmt: skip
    return replace(reader, cached=cached)


def _cache_folder(folder: Path | None, source: Path) -> Path:
    """The folder that caches a feature file."""
    if folder is None:
        return source.with_name(f"{source.name}.cache")
    return folder / f"{source.name}-{digest_of(os.path.realpath(source))[:12]}.cache"


@dataclass(frozen=True)
class _Cache:
    """One file of the cache, for one source; lengths: rows of every item that it must have."""

    key: str
    path: Path
    source: HDF5Source
    lengths: Mapping[str, int]

    def open_or_build(self, workers: int) -> CachedSource:
        """Open the file, and build it first unless there is a valid one."""
        # Before folders were named with a digest; such a file is still valid if it is this dataset's.
        earlier = self.path.parent.with_name(f"{self.source.file.path.name}.cache") / self.path.name
        for path in dict.fromkeys([self.path, earlier]):
            with contextlib.suppress(_Unusable):
                return replace(self, path=path)._open()
        folder = self.path.parent
        folder.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(folder / ".lock", f"waiting for another process that is filling {folder}", poll=poll):
            remove_partial_files(folder)
            try:
                return self._open()  # another process has built it meanwhile
            except _Unusable as reason:
                self._build(reason, workers)
        try:
            return self._open()
        except _Unusable as reason:
            raise _NotCached(f"{self.path}: {reason}") from reason

    @property
    def _provenance(self) -> dict[str, Any]:
        """What the content depends on; sums of other library versions may differ in the last bit."""
        preprocessing = {"names": self.source.names, "width": self.source.width, "max_rows": self.source.max_rows}
        versions = {"format": FORMAT, "torch": str(torch.__version__), "numpy": np.__version__}
        return {**self.source.file.state(), **preprocessing, **versions}

    def _linked(self, ids: Iterable[str]) -> dict[str, str]:
        """For each item that is stored in files linked from the feature file: a digest of the state of these files."""
        names = {self.source.names.format(item_id): item_id for item_id in ids}
        return {names[name]: digest_of(files) for name, files in self.source.file.linked(names).items()}

    def _open(self) -> CachedSource:
        try:
            rows = RowsFile(self.path)
        except InputError as error:
            raise _Unusable("corrupt") from error
        except FileNotFoundError as error:
            raise _Unusable("") from error
        except OSError as error:
            raise _Unusable(str(error)) from error
        expected = self._provenance
        if changed := [name for name, value in expected.items() if rows.fingerprint.get(name) != value]:
            raise _Unusable(f"outdated ({', '.join(changed)} changed)")
        before, now = rows.fingerprint.get("linked", {}), self._linked(self.lengths)
        if any(item_id in rows and before.get(item_id) != now.get(item_id) for item_id in self.lengths):
            raise _Unusable("outdated (files that the feature file links to changed)")
        if missing := sum(item_id not in rows for item_id in self.lengths):
            raise _Unusable(f"{missing} of {len(self.lengths)} items are missing", kept=rows.ids)
        if rows.lengths_of(list(self.lengths)) != list(self.lengths.values()) or not self._agrees(rows):
            raise _Unusable("it differs from the feature file")
        return CachedSource(rows, self.source)

    def _agrees(self, rows: RowsFile) -> bool:
        """Whether a sample of items, short and long, is bit-identical to the feature file."""
        ids = sorted(self.lengths, key=self.lengths.__getitem__)
        for index in np.linspace(0, len(ids) - 1, min(len(ids), _COMPARED_ITEMS)).astype(int):
            expected_nD = self.source.read(ids[index]).numpy()
            found_nD = np.empty_like(expected_nD)
            if not rows.read_into(ids[index], found_nD) or found_nD.tobytes() != expected_nD.tobytes():
                return False
        return True

    def _build(self, reason: _Unusable, workers: int) -> None:
        ids = list(dict.fromkeys([*reason.kept, *self.lengths]))
        if str(reason):
            log.info("rebuilding %s: %s", self.path, reason)
        if not reason.kept:
            self.path.unlink(missing_ok=True)  # its space may be needed
        mean_rows = sum(self.lengths.values()) / len(self.lengths)
        size = int(len(ids) * mean_rows * self.source.width * torch.float32.itemsize)
        free = free_bytes(self.path.parent)
        if size + LEFT_FREE > free:
            raise _NotCached(f"{self.path.parent}: needs {format_bytes(size)} and {format_bytes(LEFT_FREE)} to spare, "
                f"{format_bytes(free)} free")  # fmt: skip
        log.info("caching %s of %d items: about %s in %s (%s free)",
                 self.key, len(ids), format_bytes(size), self.path, format_bytes(free))  # fmt: skip
        linked = self._linked(ids)
        made_from = {**self._provenance, "linked": linked} if linked else self._provenance
        write_rows(self.path, made_from, ids, self.source.width, self._read(ids, size, workers))

    def _read(self, ids: Sequence[str], size: int, workers: int) -> Iterator[Ragged]:
        workers = min(workers, size // _BYTES_PER_WORKER)
        loader = Loader(_Items(self.source, ids), _ITEMS_PER_BATCH, workers, pinned=False)
        yield from progress_bar(loader, f"caching {self.key}", "batch")
        if self.source.file.has_changed():
            raise _NotCached(f"{self.source.file.path}: modified while it was being read")


class _Items(Dataset[Ragged]):
    """Batches of items of a source."""

    def __init__(self, source: HDF5Source, ids: Sequence[str]) -> None:
        self.source = source
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitems__(self, indices: Sequence[int]) -> Ragged | InputError:
        """The features of these items."""
        try:
            return self.source.gather([self.ids[index] for index in indices])
        except InputError as error:
            return error
