"""Edits for training, drawn from a cache instead of being encoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from method.data.captions import Caption
from method.data.edits import KINDS, EditedQueries, Kind, PreparedEdits
from method.data.ragged import Layout, Ragged
from method.data.shared_memory import allocate_rows
from method.negatives.blocks import Rows, checksum
from method.negatives.cache import REMEDY, blocks_of, open_block, read_manifest
from method.negatives.editor import draw_evenly
from method.runtime import hardware
from method.runtime.errors import InputError


class CachedNegatives:
    """Edits drawn from the pools of a cache, in half precision.

    Every edit is compared with its checksum when a process reads it for the first time.

    Args:
        folder: where the cache lies.
        captions: all captions of the training file, in its order.
        expected: the parts of the cache's fingerprint that must agree.
        counts: edits of each kind to draw for a caption.
        seed: of the run; what is drawn depends on it, the epoch, the caption and the kind.

    Raises:
        InputError: when the cache is missing, incomplete, damaged or made from something else, or when its pools are
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
            raise InputError(f"{folder}: the cache is not complete; it is continued by {REMEDY}")
        for kind, count in counts.items():
            size = manifest.made_from.get(f"{kind} pool", 0)
            if not isinstance(size, int) or size < count:
                raise InputError(
                    f"{folder}: pools of {size} {kind} edits, --neg_{kind}_num {count} needs as many; "
                    f"choose another folder for {REMEDY}"
                )
        self._counts, self._seed = dict(counts), seed
        self._width: int = manifest.made_from["--q_feat_size"]
        try:
            self._blocks = [open_block(folder, manifest, *numbered) for numbered in enumerate(blocks_of(captions))]
        except InputError as error:
            raise InputError(f"{error}; it is repaired by {REMEDY}") from error
        records = np.concatenate([block.records for block in self._blocks])
        self._words, self._rows, self._sums = records["word"], records["rows"].astype(np.int64), records["sum"]
        self._block = np.repeat(np.arange(len(self._blocks)), [len(block.records) for block in self._blocks])
        ends = np.cumsum(self._rows)
        rows_before = np.cumsum([0, *(int(block.records["rows"].sum(dtype=np.int64)) for block in self._blocks)])
        self._starts = ends - self._rows - rows_before[self._block]
        places = records["caption"].astype(np.int64) * len(KINDS) + records["kind"]
        self._first = np.searchsorted(places, np.arange(len(captions) * len(KINDS) + 1))
        self._number = {caption.id: number for number, caption in enumerate(captions)}
        self._checked = np.zeros(len(records), bool)
        self._mapped: dict[int, npt.NDArray[np.uint8]] = {}

    def __getstate__(self) -> dict[str, Any]:
        # A mapped file would be copied into the pickle; the other process maps it itself.
        return {**self.__dict__, "_mapped": {}}

    def count_editable(self) -> dict[Kind, int]:
        """How many captions of the training file have edits of each kind."""
        pools = np.diff(self._first)
        return {kind: int((pools[KINDS.index(kind) :: len(KINDS)] > 0).sum()) for kind in self._counts}

    def prepare(self, captions: Sequence[Caption], epoch: int) -> PreparedEdits:
        """The edits of a batch with their token features, in half precision; InputError for a damaged file."""
        chosen: list[int] = []
        owners: dict[Kind, list[int]] = {kind: [] for kind in self._counts}
        for kind, of_kind in owners.items():
            for owner, caption in enumerate(captions):
                drawn = self._draw(kind, caption, epoch)
                chosen += drawn
                of_kind += [owner] * len(drawn)
        return PreparedEdits.of(self._read(np.array(chosen, np.int64)), range(len(chosen)), owners)

    def queries(self, prepared: PreparedEdits, device: torch.device) -> dict[Kind, EditedQueries | None]:
        """The edits of each kind on a device, as float32; the program does not wait until they are there."""
        values_ND = hardware.sent(prepared.rows.values, device).float()  # converted there: half the bytes travel
        return prepared.with_features(prepared.rows.with_values(values_ND))

    def _draw(self, kind: Kind, caption: Caption, epoch: int) -> list[int]:
        """Numbers of the edits of a caption for an epoch, spread evenly over the replaced words."""
        place = self._number[caption.id] * len(KINDS) + KINDS.index(kind)
        first, last = self._first[place : place + 2].tolist()
        # Pools lie in the order of their words, so that the edits of a word are neighbours.
        sizes = np.bincount(self._words[first:last]).tolist()
        starts = list(accumulate(sizes, initial=first))
        drawn: list[int] = []

        def accept(word: int, item: int) -> bool:
            drawn.append(starts[word] + item)
            return True

        draw_evenly(sizes, self._counts[kind], accept, self._seed, epoch, caption.id, kind)
        return drawn

    def _read(self, edits: npt.NDArray[np.int64]) -> Ragged:
        """The rows of these edits, one edit after the other."""
        lengths, blocks = self._rows[edits], self._block[edits]
        ends = np.cumsum(lengths)
        starts = ends - lengths
        values_ND = allocate_rows(int(lengths.sum()), self._width, np.float16)
        rows_ND: Rows = values_ND.numpy()
        numbers_N = np.arange(len(rows_ND)) + np.repeat(self._starts[edits] - starts, lengths)  # in their blocks
        # The edits of a caption lie in one block, and most often those of a whole video.
        firsts = np.flatnonzero(np.diff(blocks, prepend=-1)).tolist()
        for first, last in pairwise([*firsts, len(edits)]):
            part = slice(starts[first], ends[last - 1])
            bytes_N = self._map(int(blocks[first]))
            # With mode "raise" everything would be copied twice.
            np.take(bytes_N, numbers_N[part], axis=0, out=rows_ND[part].view(np.uint8), mode="clip")
        for place in np.flatnonzero(~self._checked[edits]).tolist():
            if checksum(rows_ND[starts[place] : ends[place]]) != self._sums[edits[place]]:
                path = self._blocks[blocks[place]].path
                raise InputError(f"{path}: damaged at edit {edits[place]}; it is repaired by {REMEDY}")
            self._checked[edits[place]] = True
        return Ragged(values_ND, Layout.of(lengths.tolist()))

    def _map(self, number: int) -> npt.NDArray[np.uint8]:
        """The rows of a block as their bytes: they may start at an odd one, and numpy would copy a block of numbers."""
        if number in self._mapped:
            return self._mapped[number]
        rows_ND = self._blocks[number].map_rows()
        bytes_N = np.asarray(rows_ND).view(np.uint8)
        if isinstance(rows_ND, np.memmap):  # what had to be read would fill the memory
            self._mapped[number] = bytes_N
        return bytes_N
