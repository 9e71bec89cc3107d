"""Hard negatives that are encoded during training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from method.data.captions import Caption
from method.data.edits import EditedQueries, Kind, PreparedEdits
from method.negatives.editor import CaptionEditor
from method.text.encoder import TextEncoder


class OnlineNegatives:
    """Hard negatives drawn and encoded for each batch; equal sentences of a batch are encoded once.

    Args:
        editors: one for each kind of edit.
        counts: edits of each kind to draw for a caption.
        encoder: computes their token features, on its device.
        seed: of the run; draws depend on it, the epoch, the caption and the kind.
    """

    def __init__(
        self, editors: Sequence[CaptionEditor], counts: Mapping[Kind, int], encoder: TextEncoder, seed: int
    ) -> None:
        self._editors, self._counts, self._encoder, self._seed = editors, counts, encoder, seed

    def count_editable(self) -> dict[Kind, int]:
        """Number of captions in the training file that have edits of each kind."""
        return {editor.kind: editor.count_editable() for editor in self._editors}

    def prepare(self, captions: Sequence[Caption], epoch: int) -> PreparedEdits:
        """The edits of a batch as tokens; uses neither the encoder's model nor its device."""
        sentences: list[str] = []
        owners: dict[Kind, list[int]] = {}
        for editor in self._editors:
            count = self._counts[editor.kind]
            edits = [editor.edits(caption, count, self._seed, epoch, caption.id, editor.kind) for caption in captions]
            owners[editor.kind] = [owner for owner, drawn in enumerate(edits) for _ in drawn]
            sentences += [edit for drawn in edits for edit in drawn]
        return PreparedEdits.of(*self._encoder.tokenize(sentences), owners)

    def queries(self, prepared: PreparedEdits, device: torch.device) -> dict[Kind, EditedQueries | None]:
        """The edits of each kind, encoded, on the encoder's device."""
        return prepared.with_features(self._encoder.encode_tokens(prepared.rows, prepared.order))
