"""The frozen text encoder of edited captions: any encoder that transformers can load from a folder.

It is no part of the trained model: nothing of it is optimised or stored in checkpoints.

Letters: E sentences, b of them in a batch, L tokens of its longest, N rows of token features in all, D width.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from method.data.preprocessing import normalize_rows
from method.data.ragged import Layout, Ragged
from method.runtime import hardware
from method.runtime.errors import InputError, shown
from method.text.encoder_files import load_encoder

# Tokens of a batch, padding included: a GPU wants many, a CPU gains nothing from more.
_TOKENS_ON_GPU, _TOKENS_ON_CPU = 16384, 1024

SpecialTokens = Literal["keep", "drop"]


def open_text_encoder(options: Mapping[str, Any], device: torch.device, precision: str = "off") -> TextEncoder:
    """The text encoder that the options describe; errors as of `TextEncoder`."""
    return TextEncoder(
        options["text_encoder"],
        options["q_feat_size"],
        options["max_desc_l"],
        device,
        precision=precision,
        layer=options["text_layer"],
        special_tokens=options["text_special_tokens"],
        dataset=options["dataset_name"],
    )


class TextEncoder:
    """Sentences in, token features out as they are for queries: normalised, the first `max_tokens` of each.

    Args:
        folder: config, weights and tokeniser as transformers saves them.
        width: D that is expected of the encoder.
        max_tokens: tokens kept of a sentence; a longer sentence is encoded whole and then cut.
        device: where it runs, in half precision (fp16) on a GPU and single on a CPU.
        token_budget: most tokens in a batch, padding included; None chooses by the device.
        precision: of the training that it serves: with 'bf16' a CPU encodes in bf16 too.
        layer: index into the hidden states, -1 the last one.
        special_tokens: whether the rows of <s> and </s> are kept. The encoder sees them in any case.
        dataset: whose token features the encoder is for; error messages say how to get it.

    Raises:
        InputError: when the folder or a part of it is missing, broken or of another width, and for a layer that the
            encoder does not have.
    """

    def __init__(
        self,
        folder: Path,
        width: int,
        max_tokens: int,
        device: torch.device,
        token_budget: int | None = None,
        precision: str = "off",
        layer: int = -1,
        special_tokens: SpecialTokens = "keep",
        dataset: str | None = None,
    ) -> None:
        self.folder, self.width, self.max_tokens, self.device = folder, width, max_tokens, device
        self.layer, self.special_tokens, self.dataset = layer, special_tokens, dataset
        self._precision = precision
        is_cpu = device.type == "cpu"
        self._token_budget = token_budget or (_TOKENS_ON_CPU if is_cpu else _TOKENS_ON_GPU)
        self._tokenizer, model, self._layer_of_model = load_encoder(folder, width, layer, dataset)
        self._dropped = _special_tokens_around(self._tokenizer) if special_tokens == "drop" else (0, 0)
        self._max_positions = min(count_positions(model), self._tokenizer.model_max_length)
        self._padding = self._tokenizer.pad_token_id or 0
        on_cpu = torch.bfloat16 if precision == "bf16" else torch.float32
        self._model = model.eval().requires_grad_(False).to(device, on_cpu if is_cpu else torch.float16)

    def __getstate__(self) -> dict[str, Any]:
        # Where workers are not forked they get a copy, and need the tokeniser alone; the model may lie on a GPU.
        return {**self.__dict__, "_model": None}

    def with_settings(self, layer: int, special_tokens: SpecialTokens) -> TextEncoder:
        """The same encoder with another layer or other special tokens; for the same layer it shares the weights."""
        if layer != self.layer:
            return TextEncoder(
                self.folder,
                self.width,
                self.max_tokens,
                self.device,
                self._token_budget,
                self._precision,
                layer,
                special_tokens,
                self.dataset,
            )
        other = copy.copy(self)
        other._model = self._model  # which __getstate__ leaves out of copies
        other.special_tokens = special_tokens
        other._dropped = _special_tokens_around(self._tokenizer) if special_tokens == "drop" else (0, 0)
        return other

    def encode(self, sentences: Sequence[str]) -> Ragged:
        """Token features of E sentences in their order, values (N, D) float32 on the encoder's device.

        Equal sentences are encoded once; without sentences nothing is. InputError for a sentence without any token.
        """
        return self.encode_tokens(*self.tokenize(sentences))

    def tokenize(self, sentences: Sequence[str]) -> tuple[Ragged, list[int]]:
        """What `encode_tokens` takes, made on the CPU by any process: it touches neither the model nor its device.

        Returns the tokens (N,) of the distinct sentences, and for each of the E sentences its number among these.
        """
        distinct = {sentence: number for number, sentence in enumerate(dict.fromkeys(sentences))}
        tokens = self._token_lists(list(distinct))
        ids_N = torch.tensor([token for ids in tokens for token in ids], dtype=torch.long)
        return Ragged(ids_N, Layout.of([len(ids) for ids in tokens])), [distinct[sentence] for sentence in sentences]

    def encode_tokens(self, tokens: Ragged, order: Sequence[int]) -> Ragged:
        """Token features of sentences as `encode` gives them, from what `tokenize` gave."""
        tokens = Ragged(hardware.sent(tokens.values, self.device), tokens.layout.to(self.device))
        kept = Layout.of(list(map(self._kept, tokens.layout.lengths)), device=self.device)
        values_ND = self._encode(tokens, kept)
        if len(kept.lengths) < len(order):
            rows_n, kept = _rows_of(kept, order)
            values_ND = values_ND[rows_n]
        # A new layout: what gradients keep must not be made in inference mode, as what this one holds may be.
        return Ragged(values_ND, kept.to(self.device))

    def count_rows(self, sentences: Sequence[str]) -> int:
        """N, the rows that these sentences will have if no two are equal, without encoding them."""
        return sum(self._kept(len(ids)) for ids in self._token_lists(list(sentences)))

    def _kept(self, length: int) -> int:
        """Rows that are kept of a sentence of so many tokens."""
        return min(length - sum(self._dropped), self.max_tokens)

    def _token_lists(self, sentences: list[str]) -> list[list[int]]:
        if not sentences:
            return []
        tokens = self._tokenizer(sentences, truncation=True, max_length=self._max_positions)["input_ids"]
        for sentence, ids in zip(sentences, tokens, strict=True):
            if self._kept(len(ids)) < 1:
                raise InputError(f"{shown(sentence)}: no token for {self.folder}, expected words that it knows")
        return [list(ids) for ids in tokens]

    def _encode(self, tokens: Ragged, layout: Layout) -> Tensor:
        """Rows (N, D) of sentences; `layout` says how many of each are kept."""
        # Made outside of inference mode, so that the layers above can keep it for their gradients.
        values_ND = torch.empty(sum(layout.lengths), self.width, device=self.device)
        with torch.inference_mode():
            for batch in _batches(tokens.layout.lengths, self._token_budget):
                rows_n, whole = _rows_of(tokens.layout, batch)
                hidden_bLD = self._hidden(Ragged(tokens.values[rows_n], whole))
                target_n, kept = _rows_of(layout, batch)
                first_n = kept.owner_N * hidden_bLD.shape[1] + self._dropped[0]
                rows_nD = hidden_bLD.flatten(0, 1)[first_n + kept.position_N]
                values_ND.index_copy_(0, target_n, normalize_rows(rows_nD.float()))
        return values_ND

    def _hidden(self, tokens: Ragged) -> Tensor:
        """Hidden states (b, L, D) of b sentences at the encoder's layer."""
        valid_bL = tokens.layout.valid_BL
        ids_bL = tokens.layout.pad(tokens.values).masked_fill(~valid_bL, self._padding)
        inputs = {"input_ids": ids_bL, "attention_mask": valid_bL.long()}
        hidden_bLD: Tensor
        if self._layer_of_model == -1:
            hidden_bLD = self._model(**inputs).last_hidden_state
        else:
            hidden_bLD = self._model(**inputs, output_hidden_states=True).hidden_states[self._layer_of_model]
        return hidden_bLD


def _special_tokens_around(tokenizer: Any) -> tuple[int, int]:
    """How many special tokens the tokeniser puts before and behind every sentence."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    before = next(first for first in range(len(whole) + 1) if whole[first : first + len(bare)] == bare)
    return before, len(whole) - len(bare) - before


def _rows_of(layout: Layout, order: Sequence[int]) -> tuple[Tensor, Layout]:
    """Numbers of the rows of some sequences, one sequence after the other, and the layout that they then have."""
    chosen = Layout.of([layout.lengths[number] for number in order], device=layout.device)
    starts_b = layout.starts_B[hardware.sent(torch.tensor(order), layout.device)]
    return starts_b[chosen.owner_N] + chosen.position_N, chosen


def _batches(lengths: Sequence[int], token_budget: int) -> Iterator[list[int]]:
    """Numbers of sentences, those of similar length together, as many as the budget allows; the longest come first."""
    order = sorted(range(len(lengths)), key=lambda number: -lengths[number])
    start = 0
    while start < len(order):
        size = max(1, token_budget // lengths[order[start]])
        yield order[start : start + size]
        start += size


def count_positions(model: Any) -> int:
    """Most tokens that a model takes: its position embeddings, less those that are kept for padding."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    return int(getattr(model.config, "max_position_embeddings", 512))
