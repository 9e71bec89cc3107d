"""Features of a feature cache, with the feature file as a fallback."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from method.data.cache.rows_file import RowsFile
from method.data.dataset import HDF5Source
from method.data.preprocessing import FloatRows
from method.data.ragged import Layout, Ragged
from method.data.shared_memory import allocate_rows
from method.runtime.errors import InputError

log = logging.getLogger(__name__)


class CachedSource:
    """The features of a rows file; items that are corrupt there are read from the feature file."""

    def __init__(self, rows: RowsFile, source: HDF5Source) -> None:
        self._rows = rows
        self._source = source

    def gather(self, ids: Sequence[str]) -> Ragged:
        """The rows of these items, one item after the other."""
        lengths = self._rows.lengths_of(ids)
        values_ND = allocate_rows(sum(lengths), self._rows.width)
        rows_ND, end = values_ND.numpy(), 0
        for item_id, length in zip(ids, lengths, strict=True):
            start, end = end, end + length
            if not self._rows.read_into(item_id, rows_ND[start:end]):
                rows_ND[start:end] = self._read_from_source(item_id, length)
        return Ragged(values_ND, Layout.of(lengths))

    def _read_from_source(self, item_id: str, length: int) -> FloatRows:
        path = self._source.file.path
        if self._rows.remove():
            log.warning(
                "%s: item %r is corrupt, reading it from %s; the cache will be rebuilt by the next run",
                self._rows.path,
                item_id,
                path,
            )
        rows_nD: FloatRows = self._source.read(item_id).numpy()
        if len(rows_nD) != length:
            raise InputError(f"{path}: {item_id!r} has changed since it was cached; restart the run")
        return rows_nD
