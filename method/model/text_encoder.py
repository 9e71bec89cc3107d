"""The frozen text encoder of edited captions: any encoder that transformers can load from a folder.

It is no part of the trained model: nothing of it is optimised or stored in checkpoints.

Letters: E sentences, b of them in a batch, L tokens of its longest, N rows of token features in all, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from method import hardware
from method.data.features import normalize_rows
from method.data.ragged import Layout, Ragged
from method.model.encoder_files import load_encoder

# Tokens of a batch, padding included: a GPU wants many, a CPU gains nothing from more.
_TOKENS_ON_GPU, _TOKENS_ON_CPU = 16384, 1024


class TextEncoder:
    """Sentences in, token features out as they are for queries: normalised, the first `max_tokens` of each.

    Args:
        folder: config, weights and tokeniser as transformers saves them.
        width: D that is expected of the encoder.
        max_tokens: tokens kept of a sentence, <s> and </s> included; a longer sentence is encoded whole and then cut.
        device: where it runs, in half precision (fp16) on a GPU and single on a CPU.
        token_budget: most tokens in a batch, padding included; None chooses by the device.
        precision: of the training that it serves: with 'bf16' a CPU encodes in bf16 too.

    Raises:
        InputError: when the folder or a part of it is missing, broken or of another width.
    """

    def __init__(
        self,
        folder: Path,
        width: int,
        max_tokens: int,
        device: torch.device,
        token_budget: int | None = None,
        precision: str = "off",
    ) -> None:
        self.width, self.max_tokens, self.device = width, max_tokens, device
        is_cpu = device.type == "cpu"
        self._token_budget = token_budget or (_TOKENS_ON_CPU if is_cpu else _TOKENS_ON_GPU)
        self._tokenizer, model = load_encoder(folder, width)
        self._max_positions = min(_positions(model), self._tokenizer.model_max_length)
        self._padding = self._tokenizer.pad_token_id or 0
        on_cpu = torch.bfloat16 if precision == "bf16" else torch.float32
        self._model = model.eval().requires_grad_(False).to(device, on_cpu if is_cpu else torch.float16)

    def encode(self, sentences: Sequence[str]) -> Ragged:
        """Token features of E sentences in their order, values (N, D) float32 on the encoder's device.

        Equal sentences are encoded once; without sentences nothing is.
        """
        distinct = {sentence: number for number, sentence in enumerate(dict.fromkeys(sentences))}
        tokens = self._tokenize(list(distinct))
        layout = Layout.of([min(len(ids), self.max_tokens) for ids in tokens])
        values_ND = self._encode(tokens, layout)
        if len(distinct) < len(sentences):
            order = [distinct[sentence] for sentence in sentences]
            rows_n, layout = _rows_of(layout, order)
            values_ND = values_ND[hardware.sent(rows_n, self.device)]
        return Ragged(values_ND, layout.to(self.device))

    def count_rows(self, sentences: Sequence[str]) -> int:
        """N, the rows that these sentences will have if no two are equal, without encoding them."""
        return sum(min(len(ids), self.max_tokens) for ids in self._tokenize(list(sentences)))

    def _tokenize(self, sentences: list[str]) -> list[list[int]]:
        if not sentences:
            return []
        tokens = self._tokenizer(sentences, truncation=True, max_length=self._max_positions)["input_ids"]
        return [list(ids) for ids in tokens]

    def _encode(self, tokens: Sequence[list[int]], layout: Layout) -> Tensor:
        """Rows (N, D) of token lists; `layout` says how many of each are kept."""
        # Made outside of inference mode, so that the layers above can keep it for their gradients.
        values_ND = torch.empty(sum(layout.lengths), self.width, device=self.device)
        with torch.inference_mode():
            for batch in _batches([len(ids) for ids in tokens], self._token_budget):
                hidden_bLD = self._hidden([tokens[number] for number in batch])
                target_n, kept = _rows_of(layout, batch)
                source_n = kept.owner_N * hidden_bLD.shape[1] + kept.position_N
                rows_nD = hidden_bLD.flatten(0, 1)[hardware.sent(source_n, self.device)]
                values_ND.index_copy_(0, hardware.sent(target_n, self.device), normalize_rows(rows_nD.float()))
        return values_ND

    def _hidden(self, tokens: Sequence[list[int]]) -> Tensor:
        """Last hidden states (b, L, D) of b token lists."""
        layout = Layout.of([len(ids) for ids in tokens])
        ids_bL = layout.pad(torch.tensor([token for ids in tokens for token in ids]))
        ids_bL = hardware.sent(ids_bL.masked_fill(~layout.real_BL, self._padding), self.device)
        mask_bL = hardware.sent(layout.real_BL.long(), self.device)
        hidden_bLD: Tensor = self._model(input_ids=ids_bL, attention_mask=mask_bL).last_hidden_state
        return hidden_bLD


def _rows_of(layout: Layout, order: Sequence[int]) -> tuple[Tensor, Layout]:
    """Numbers of the rows of some sequences, one sequence after the other, and the layout that they then have."""
    chosen = Layout.of([layout.lengths[number] for number in order])
    return layout.starts_B[torch.tensor(order)][chosen.owner_N] + chosen.position_N, chosen


def _batches(lengths: Sequence[int], token_budget: int) -> Iterator[list[int]]:
    """Numbers of sentences, those of similar length together, as many as the budget allows; the longest come first."""
    order = sorted(range(len(lengths)), key=lambda number: -lengths[number])
    start = 0
    while start < len(order):
        size = max(1, token_budget // lengths[order[start]])
        yield order[start : start + size]
        start += size


def _positions(model: Any) -> int:
    """Most tokens that a model takes: its position embeddings, less those that are kept for padding."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    return int(getattr(model.config, "max_position_embeddings", 512))
