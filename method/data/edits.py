"""Token features of the edits of a batch of captions, and what gives them to a training step.

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

    queries: one or more sequences of token features, rows normalised, float32.
    owner_E: the place in the batch of the caption that each is an edit of, ascending.
    """

    queries: Ragged
    owner_E: Tensor


@dataclass(frozen=True)
class PreparedEdits:
    """The edits of a batch of captions, one kind after the other, as far as any process can make them.

    rows: on the CPU, what their source makes their token features from: sequences of features or of tokens.
    order: for each edit its sequence in `rows`; equal edits may share one.
    owner_E: the place in the batch of the caption that each is an edit of, ascending within a kind.
    counts: how many edits there are of each kind.
    """

    rows: Ragged
    order: Sequence[int]
    owner_E: Tensor
    counts: Mapping[Kind, int]

    @classmethod
    def of(cls, rows: Ragged, order: Sequence[int], owners: Mapping[Kind, Sequence[int]]) -> PreparedEdits:
        """Put them together; `owners` has for each kind the captions of its edits."""
        owner_E = torch.tensor([owner for of_kind in owners.values() for owner in of_kind], dtype=torch.long)
        return cls(rows, order, owner_E, {kind: len(of_kind) for kind, of_kind in owners.items()})

    def pin_memory(self) -> PreparedEdits:
        """The same in page-locked memory."""
        return replace(self, rows=self.rows.pin_memory(), owner_E=self.owner_E.pin_memory())

    def with_features(self, features: Ragged) -> dict[Kind, EditedQueries | None]:
        """The edits of each kind with these token features, a sequence for each edit; None for a kind without any."""
        device, ends = features.values.device, list(accumulate(self.counts.values(), initial=0))
        lengths = [features.layout.lengths[first:end] for first, end in pairwise(ends)]
        values = features.values.split([sum(of_kind) for of_kind in lengths])
        owners = hardware.sent(self.owner_E, device).split(list(self.counts.values()))
        return {
            kind: EditedQueries(Ragged(values_ND, Layout.of(of_kind, device=device)), owner_E) if of_kind else None
            for kind, values_ND, of_kind, owner_E in zip(self.counts, values, lengths, owners, strict=True)
        }


class NegativeSource(Protocol):
    """Gives the edits of any batch of captions in any epoch, always the same for the same seed, in two stages.

    The first takes long and needs no device: data workers do it ahead. The second is done where the training is.
    """

    def count_editable(self) -> dict[Kind, int]:
        """How many captions of the training file have edits of each kind."""

    def prepare(self, captions: Sequence[Caption], epoch: int) -> PreparedEdits:
        """The edits of a batch, as far as they can be made without a device; InputError for a file that is damaged."""

    def queries(self, prepared: PreparedEdits, device: torch.device) -> dict[Kind, EditedQueries | None]:
        """Their token features, of each kind, on the device that is trained on; None where there are no edits."""
