"""Hard negatives drawn from a cache instead of being encoded during training.

Letters: E edits, N rows of all edits one after the other, D width.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch

from method.data.cache.rows_file import Rows, read_exactly
from method.data.captions import Caption
from method.data.edits import KINDS, EditedQueries, Kind, PreparedEdits
from method.data.ragged import Layout, Ragged
from method.data.shared_memory import allocate_rows
from method.negatives.cache import COMMAND, open_block, read_manifest, split_blocks
from method.negatives.editor import draw_evenly
from method.runtime import hardware
from method.runtime.errors import InputError


class CachedNegatives:
    """Hard negatives from the pools of a cache, in half precision.

    The checksum of an edit is verified the first time that a process reads it.

    Args:
        folder: of the cache.
        captions: all captions of the training file, in file order.
        expected: the parts of the cache's fingerprint that must be equal.
        counts: edits of each kind to draw for a caption.
        seed: of the run; draws depend on it, the epoch, the caption and the kind.

    Raises:
        InputError: if the cache is missing, incomplete, corrupt or built from something else, or if its pools are
            smaller than `counts`.
    """

    def __init__(
        self,
        folder: Path,
        captions: Sequence[Caption],
        expected: Mapping[str, Any],
        counts: Mapping[Kind, int],
        seed: int,
    ) -> None:
        manifest = read_manifest(folder, expected)
        if not manifest.complete:
            raise InputError(f"{folder}: the hard negative cache is incomplete; continue with {COMMAND}")
        for kind, count in counts.items():
            size = manifest.fingerprint.get(f"{kind} pool", 0)
            if not isinstance(size, int) or size < count:
                raise InputError(
                    f"{folder}: pools of {size} {kind} edits, --neg_{kind}_num {count} needs as many; "
                    f"use another --neg_cache folder, and build it with {COMMAND}"
                )
        self._counts, self._seed = dict(counts), seed
        self._width: int = manifest.fingerprint["--q_feat_size"]
        try:
            blocks = [open_block(folder, manifest, i, captions, part) for i, part in enumerate(split_blocks(captions))]
        except InputError as error:
            raise InputError(f"{error}; repair it with {COMMAND}") from error
        # Columns of all edits, instead of open files with their item ids: a dataset has millions of edits.
        self._paths = [block.rows.path for block in blocks]
        self._block_E = np.repeat(np.arange(len(blocks)), [len(block.rows.ids) for block in blocks])
        self._word_E = np.concatenate([block.word_E for block in blocks]).astype(np.uint16)
        self._length_E = np.concatenate([block.rows.lengths for block in blocks])
        self._offset_E = np.concatenate([block.rows.offsets for block in blocks])
        self._checksum_E = np.concatenate([block.rows.checksums for block in blocks])
        self._verified_E = np.zeros(len(self._block_E), bool)
        pool_E = np.concatenate([block.pool_E for block in blocks])
        self._pool_starts = np.searchsorted(pool_E, np.arange(len(captions) * len(KINDS) + 1))
        self._first_pool = {caption.id: index * len(KINDS) for index, caption in enumerate(captions)}

    def count_editable(self) -> dict[Kind, int]:
        """Number of captions in the training file that have edits of each kind."""
        sizes = np.diff(self._pool_starts)
        return {kind: int((sizes[KINDS.index(kind) :: len(KINDS)] > 0).sum()) for kind in self._counts}

    def prepare(self, captions: Sequence[Caption], epoch: int) -> PreparedEdits:
        """The edits of a batch with their token features, in half precision; InputError for a corrupt file."""
        edits: list[int] = []
        owners: dict[Kind, list[int]] = {kind: [] for kind in self._counts}
        for kind, owners_of_kind in owners.items():
            for owner, caption in enumerate(captions):
                drawn = self._draw(kind, caption, epoch)
                edits += drawn
                owners_of_kind += [owner] * len(drawn)
        return PreparedEdits.of(self._read(edits), range(len(edits)), owners)

    def queries(self, prepared: PreparedEdits, device: torch.device) -> dict[Kind, EditedQueries | None]:
        """The edits of each kind on a device, as float32; the transfer is asynchronous."""
        values_ND = hardware.to_device_async(
            prepared.rows.values, device
        ).float()  # converted there: half the bytes to transfer
        return prepared.with_features(prepared.rows.with_values(values_ND))

    def _draw(self, kind: Kind, caption: Caption, epoch: int) -> list[int]:
        """Indices of the edits of a caption for an epoch, spread evenly over the replaced words."""
        pool = self._first_pool[caption.id] + KINDS.index(kind)
        start, end = self._pool_starts[pool : pool + 2].tolist()
        # The edits of a pool are sorted by word, so those of one word are contiguous.
        sizes = np.bincount(self._word_E[start:end]).tolist()
        word_starts = list(accumulate(sizes, initial=start))
        drawn: list[int] = []

        def accept(word: int, item: int) -> bool:
            drawn.append(word_starts[word] + item)
            return True

        draw_evenly(sizes, self._counts[kind], accept, self._seed, epoch, caption.id, kind)
        return drawn

    def _read(self, edits: Sequence[int]) -> Ragged:
        """The rows of these edits, one edit after the other."""
        lengths = self._length_E[list(edits)].tolist()
        ends = list(accumulate(lengths, initial=0))
        values_ND = allocate_rows(ends[-1], self._width, np.float16)
        rows_ND: Rows = values_ND.numpy()
        in_file_order = sorted(range(len(edits)), key=edits.__getitem__)
        # Files are opened when they are needed: a cache has more of them than a process may keep open.
        for block, positions in groupby(in_file_order, key=lambda position: int(self._block_E[edits[position]])):
            path = self._paths[block]
            try:
                with path.open("rb", buffering=0) as file:
                    for position in positions:
                        self._read_edit(file.fileno(), edits[position], rows_ND[ends[position] : ends[position + 1]])
            except OSError as error:
                raise InputError(f"{path}: cannot be read ({error.strerror}); repair it with {COMMAND}") from error
            except _Corrupt as error:
                raise InputError(f"{path}: edit {error} is corrupt; repair it with {COMMAND}") from error
        return Ragged(values_ND, Layout.of(lengths))

    def _read_edit(self, descriptor: int, edit: int, rows_nD: Rows) -> None:
        if not read_exactly(descriptor, int(self._offset_E[edit]), rows_nD):
            raise _Corrupt(edit)
        if not self._verified_E[edit]:
            if zlib.crc32(rows_nD.data) != self._checksum_E[edit]:
                raise _Corrupt(edit)
            self._verified_E[edit] = True


class _Corrupt(Exception):
    """An edit, by its index, that cannot be read or has another checksum."""
