"""Hard negatives of a batch: edited captions, and the interface of their sources.

Letters: E edits of all kinds, N rows of sequences one after the other, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Literal, Protocol

import torch
from torch import Tensor

from method.data.captions import Caption
from method.data.ragged import Layout, Ragged
from method.runtime import hardware

# What an edit replaces: a verb (action) or a noun (object). Also the names of the branches that get it.
Kind = Literal["action", "object"]
KINDS: tuple[Kind, ...] = ("action", "object")


@dataclass(frozen=True)
class EditedQueries:
    """The edits of one kind for a batch of captions.

    queries: one or more sequences of token features, row-normalised, float32.
    owner_E: index in the batch of the caption that each edit was made from, ascending.
    """

    queries: Ragged
    owner_E: Tensor


@dataclass(frozen=True)
class PreparedEdits:
    """The edits of a batch of captions, one kind after the other, as data workers prepare them.

    rows: sequences of tokens or of features, on the CPU, from which the source computes token features.
    order: index of the sequence of each edit; equal edits may share one.
    owner_E: index in the batch of the caption that each edit was made from, ascending within a kind.
    counts: number of edits of each kind.
    """

    rows: Ragged
    order: Sequence[int]
    owner_E: Tensor
    counts: Mapping[Kind, int]

    @classmethod
    def of(cls, rows: Ragged, order: Sequence[int], owners: Mapping[Kind, Sequence[int]]) -> PreparedEdits:
        """The edits with these rows; `owners` holds, for each kind, the caption index of each edit."""
        owner_E = torch.tensor([owner for indices in owners.values() for owner in indices], dtype=torch.long)
        return cls(rows, order, owner_E, {kind: len(indices) for kind, indices in owners.items()})

    def pin_memory(self) -> PreparedEdits:
        """A copy in page-locked memory."""
        return replace(self, rows=self.rows.pin_memory(), owner_E=self.owner_E.pin_memory())

    def with_features(self, features: Ragged) -> dict[Kind, EditedQueries | None]:
        """The edits of each kind with these token features, one sequence per edit; None for a kind without edits."""
        device, ends = features.values.device, list(accumulate(self.counts.values(), initial=0))
        lengths = [features.layout.lengths[start:end] for start, end in pairwise(ends)]
        values = features.values.split(list(map(sum, lengths)))
        owners = hardware.to_device_async(self.owner_E, device).split(list(self.counts.values()))
        return {
            kind: EditedQueries(Ragged(values_ND, Layout.of(lengths_E, device=device)), owner_E) if lengths_E else None
            for kind, values_ND, lengths_E, owner_E in zip(self.counts, values, lengths, owners, strict=True)
        }


class NegativeSource(Protocol):
    """Computes the edits of a batch of captions in an epoch, reproducibly, in two stages.

    `prepare` is slow and needs no GPU, so data workers run it ahead. `queries` runs in the training process.
    """

    def count_editable(self) -> dict[Kind, int]:
        """Number of captions in the training file that have edits of each kind."""

    def prepare(self, captions: Sequence[Caption], epoch: int) -> PreparedEdits:
        """The edits of a batch, prepared on the CPU; InputError for a corrupt file."""

    def queries(self, prepared: PreparedEdits, device: torch.device) -> dict[Kind, EditedQueries | None]:
        """The edits of each kind with token features on the training device; None for a kind without edits."""
