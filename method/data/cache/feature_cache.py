"""The feature cache: every stream and all token features sampled and normalised once, a packed table for each.

It lies in `<feature file>.cache/` beside the feature file, or in `<feature file>-<digest of its path>.cache/` below a
folder of the user's, which several datasets may share: `i3d_feat-128.rows` has the frames of all videos that a run has
needed so far, at most 128 of each. A table is rebuilt when its feature file, a file that this one links to or the
preprocessing has changed, and grows when a run needs more items. What stands in the way of a cache never stops a run:
it goes on with the feature files and says so.
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
from method.data.cache.rows_file import PackedRows, PackedTable, write_rows
from method.data.dataset import FeatureReader, FeatureSource, HDF5Source
from method.data.ragged import Ragged
from method.data.splits import Split, sampled_lengths
from method.runtime.errors import InputError, summarize
from method.runtime.files import digest_of, exclusive_lock, free_bytes, in_bytes
from method.runtime.progress import poll, progress_bar

log = logging.getLogger(__name__)

FORMAT = 1  # counts up whenever the preprocessing changes
LEFT_FREE = 1 << 30  # bytes on the disk, for the files of the run
_ITEMS_A_BATCH = 16
_BYTES_A_WORKER = 1 << 26
_COMPARED_ITEMS = 8


class _NotCached(Exception):
    """Why there is no cache."""


class _Unusable(Exception):
    """Why a file cannot be used; `kept` are the items of one that only lacks others."""

    def __init__(self, reason: str, kept: Sequence[str] = ()) -> None:
        super().__init__(reason)
        self.kept = kept


def with_cache(
    reader: FeatureReader, splits: Iterable[Split], location: Path | str | None, workers: int
) -> FeatureReader:
    """The reader with a cache of all that the splits need; one line says what could not be cached, and why.

    Of several processes one makes a table and the others wait for it.

    Args:
        reader: of the feature files.
        splits: of which to cache the items.
        location: folder of the cache, None: beside each feature file, 'off': no cache.
        workers: processes that read the feature files.

    Raises:
        InputError: for features that training would refuse too.
    """
    if location == "off":
        return reader
    folder = Path(location) if location else None
    tables: dict[str, FeatureSource] = {}
    failures: dict[str, str] = {}
    counts = sampled_lengths(reader, splits)
    for key, source in reader.hdf5_sources.items():
        cache = _Cache(key, _place(folder, source.file.path) / f"{key}-{source.max_rows}.rows", source, counts[key])
        try:
            tables[key] = cache.open_or_make(workers)
        except _NotCached as reason:
            failures[key] = str(reason)
        except OSError as error:
            failures[key] = f"{error.filename or cache.path}: {error.strerror or error}"
    if failures:
        log.warning(
            "no feature cache of %s (%s): the feature files are read in every epoch; --feature_cache DIR puts it "
            "elsewhere, off does without",
            ", ".join(failures),
            summarize(list(dict.fromkeys(failures.values()))),
        )
    return replace(reader, cached=tables)


def _place(folder: Path | None, source: Path) -> Path:
    """The folder of a feature file's cache."""
    if folder is None:
        return source.with_name(f"{source.name}.cache")
    return folder / f"{source.name}-{digest_of(os.path.realpath(source))[:12]}.cache"


@dataclass(frozen=True)
class _Cache:
    """A table's place in the cache. counts: rows of every item that it must have."""

    key: str
    path: Path
    source: HDF5Source
    counts: Mapping[str, int]

    def open_or_make(self, workers: int) -> PackedTable:
        """The table, made first if there is none that fits."""
        # Folders of the user's used to be without the digest, which is of no harm as long as a single dataset uses one.
        earlier = self.path.parent.with_name(f"{self.source.file.path.name}.cache") / self.path.name
        for path in dict.fromkeys([self.path, earlier]):
            with contextlib.suppress(_Unusable):
                return replace(self, path=path)._open()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        folder = self.path.parent
        with exclusive_lock(folder / ".lock", f"waiting for another process that fills {folder}", poll=poll):
            for left_over in folder.glob(".*.part"):  # of a process that was killed
                left_over.unlink()
            try:
                return self._open()  # another process has made it meanwhile
            except _Unusable as reason:
                self._make(reason, workers)
        try:
            return self._open()
        except _Unusable as reason:
            raise _NotCached(f"{self.path}: {reason}") from reason

    @property
    def _made_from(self) -> dict[str, Any]:
        """What the content depends on. The versions count because their sums may differ in the last bit."""
        preprocessing = {"names": self.source.names, "width": self.source.width, "max_rows": self.source.max_rows}
        versions = {"format": FORMAT, "torch": str(torch.__version__), "numpy": np.__version__}
        return {**self.source.file.state(), **preprocessing, **versions}

    def _linked(self, ids: Iterable[str]) -> dict[str, str]:
        """Of the items that lie in other files than the feature file itself: a digest of what tells these files."""
        names = {self.source.names.format(item_id): item_id for item_id in ids}
        return {names[name]: digest_of(files) for name, files in self.source.file.linked(names).items()}

    def _open(self) -> PackedTable:
        try:
            rows = PackedRows(self.path)
        except InputError as error:
            raise _Unusable("it is damaged") from error
        except FileNotFoundError as error:
            raise _Unusable("") from error
        except OSError as error:
            raise _Unusable(str(error)) from error
        expected = self._made_from
        if changed := [name for name, value in expected.items() if rows.made_from.get(name) != value]:
            raise _Unusable(f"it was made from something else ({', '.join(changed)} changed)")
        before, now = rows.made_from.get("linked", {}), self._linked(self.counts)
        if any(item_id in rows and before.get(item_id) != now.get(item_id) for item_id in self.counts):
            raise _Unusable("files that the feature file links to have changed")
        if missing := sum(item_id not in rows for item_id in self.counts):
            raise _Unusable(f"it lacks {missing} of {len(self.counts)} items", kept=rows.ids)
        if rows.lengths(list(self.counts)) != list(self.counts.values()) or not self._agrees(rows):
            raise _Unusable("it is not what the feature file gives")
        return PackedTable(rows, self.source)

    def _agrees(self, rows: PackedRows) -> bool:
        """Whether some items, short and long ones, are to the bit what the feature file gives."""
        ids = sorted(self.counts, key=self.counts.__getitem__)
        for place in np.linspace(0, len(ids) - 1, min(len(ids), _COMPARED_ITEMS)).astype(int):
            expected_nD = self.source.read(ids[place]).numpy()
            found_nD = np.empty_like(expected_nD)
            if not rows.read_into(ids[place], found_nD) or found_nD.tobytes() != expected_nD.tobytes():
                return False
        return True

    def _make(self, reason: _Unusable, workers: int) -> None:
        ids = list(dict.fromkeys([*reason.kept, *self.counts]))
        if str(reason):
            log.info("%s: %s; it is rebuilt", self.path, reason)
        if not reason.kept:
            self.path.unlink(missing_ok=True)  # of no use to anyone, and its room may be needed
        mean_rows = sum(self.counts.values()) / len(self.counts)
        size = int(len(ids) * mean_rows * self.source.width * torch.float32.itemsize)
        free = free_bytes(self.path.parent)
        if size + LEFT_FREE > free:
            raise _NotCached(f"{self.path.parent}: {in_bytes(size)} and {in_bytes(LEFT_FREE)} to spare are needed, "
                f"{in_bytes(free)} are free")  # fmt: skip
        log.info("caching %s of %d items: about %s in %s (%s free)",
                 self.key, len(ids), in_bytes(size), self.path, in_bytes(free))  # fmt: skip
        linked = self._linked(ids)
        made_from = {**self._made_from, "linked": linked} if linked else self._made_from
        write_rows(self.path, made_from, ids, self.source.width, self._read(ids, size, workers))

    def _read(self, ids: Sequence[str], size: int, workers: int) -> Iterator[Ragged]:
        loader = Loader(_Items(self.source, ids), _ITEMS_A_BATCH, min(workers, size // _BYTES_A_WORKER), pinned=False)
        yield from progress_bar(loader, f"caching {self.key}", "batch")
        if self.source.file.has_changed():
            raise _NotCached(f"{self.source.file.path}: it was written to while it was read")


class _Items(Dataset[Ragged]):
    """The items of a table as its feature file gives them."""

    def __init__(self, source: HDF5Source, ids: Sequence[str]) -> None:
        self.source = source
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitems__(self, places: Sequence[int]) -> Ragged | InputError:
        """The rows of the items at these places."""
        try:
            return self.source.gather([self.ids[place] for place in places])
        except InputError as error:
            return error
