"""Token features of the edits of a batch of captions, and what gives them to a training step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from method import hardware
from method.data.captions import Caption
from method.data.ragged import Layout, Ragged
from method.data.vocabulary import Kind


@dataclass(frozen=True)
class EditedQueries:
    """The edits of one kind for a batch of captions.

    queries: E >= 1 sequences of token features, rows normalised; a source may give them in half precision,
        `to` makes them float32.
    owner_E: the place in the batch of the caption that each is an edit of, ascending.
    """

    queries: Ragged
    owner_E: Tensor

    def to(self, device: torch.device) -> EditedQueries:
        """The same edits on a device, as float32; the program does not wait until they are there."""
        values_ND = hardware.sent(self.queries.values, device).float()  # converted there: half the bytes travel
        return EditedQueries(Ragged(values_ND, self.queries.layout.to(device)), hardware.sent(self.owner_E, device))


class NegativeSource(Protocol):
    """Gives the edits of any batch of captions in any epoch, always the same for the same seed."""

    def count_editable(self) -> dict[Kind, int]:
        """How many captions of the training file have edits of each kind."""

    def for_batch(self, captions: Sequence[Caption], epoch: int) -> dict[Kind, EditedQueries | None]:
        """Edits of each kind for a batch; None where no caption of the batch has any."""


def edited_queries(values_ND: Tensor, lengths: Sequence[int], owners: Sequence[int]) -> EditedQueries | None:
    """Edits from their rows (N, D), one after the other, their lengths and their captions; None for no edits."""
    if not lengths:
        return None
    queries = Ragged(values_ND, Layout.of(lengths, device=values_ND.device))
    return EditedQueries(queries, hardware.sent(torch.tensor(owners, dtype=torch.long), values_ND.device))
