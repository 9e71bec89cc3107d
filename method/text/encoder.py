"""The frozen text encoder of hard negatives and typed sentences: any encoder that transformers loads from a folder.

It is not part of the trained model: its weights are neither optimised nor stored in checkpoints.

Letters: E sentences, b sentences in a batch, L tokens of the longest, N rows of token features in all, D width.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from method.data.preprocessing import normalize_rows
from method.data.ragged import Layout, Ragged
from method.runtime import hardware
from method.runtime.errors import InputError, shown
from method.text.encoder_files import count_positions, load_encoder

# Tokens per batch, padding included. A GPU needs large batches; on a CPU, larger ones are not faster.
_TOKENS_ON_GPU, _TOKENS_ON_CPU = 16384, 1024

SpecialTokens = Literal["keep", "drop"]


@dataclass(frozen=True)
class EncoderSettings:
    """Which text encoder is used and how; see `TextEncoder`."""

    folder: Path
    width: int
    max_tokens: int
    layer: int
    special_tokens: SpecialTokens
    dataset: str


def open_text_encoder(settings: EncoderSettings, device: torch.device, precision: str = "off") -> TextEncoder:
    """Load the text encoder; errors as of `TextEncoder`."""
    return TextEncoder(
        settings.folder,
        settings.width,
        settings.max_tokens,
        device,
        precision=precision,
        layer=settings.layer,
        special_tokens=settings.special_tokens,
        dataset=settings.dataset,
    )


class TextEncoder:
    """Encodes sentences into token features like those of a dataset: row-normalised, truncated to `max_tokens`.

    Args:
        folder: config, weights and tokenizer as saved by transformers.
        width: the expected D of the encoder.
        max_tokens: maximum number of rows per sentence; sentences are truncated after encoding.
        device: of the encoder, which runs in fp16 on a GPU and in fp32 on a CPU.
        token_budget: maximum number of tokens in a batch, padding included; None chooses by the device.
        precision: `--amp` of the training; with 'bf16', the encoder uses bf16 on a CPU, too.
        layer: index into the hidden states, -1 for the last.
        special_tokens: whether the rows of <s> and </s> are kept. The encoder always sees them.
        dataset: the dataset that the encoder is for; error messages then say how to get it.

    Raises:
        InputError: if the folder or a part of it is missing, corrupt or of another width, and for a layer that does
            not exist.
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
        # Spawned workers only tokenize, and the model may be on a GPU.
        return {**self.__dict__, "_model": None}

    def with_settings(self, layer: int, special_tokens: SpecialTokens) -> TextEncoder:
        """This encoder with another layer or other special tokens; with the same layer, it shares the weights."""
        if layer != self.layer:
            size = self.folder, self.width, self.max_tokens, self.device, self._token_budget, self._precision
            return TextEncoder(*size, layer, special_tokens, self.dataset)
        other = copy.copy(self)
        other._model = self._model  # dropped by __getstate__
        other.special_tokens = special_tokens
        other._dropped = _special_tokens_around(self._tokenizer) if special_tokens == "drop" else (0, 0)
        return other

    def encode(self, sentences: Sequence[str]) -> Ragged:
        """Token features of E sentences in their order: values (N, D), float32, on the encoder's device.

        Equal sentences are encoded once. InputError for a sentence without any token.
        """
        return self.encode_tokens(*self.tokenize(sentences))

    def tokenize(self, sentences: Sequence[str]) -> tuple[Ragged, list[int]]:
        """The input of `encode_tokens`; uses neither the model nor its device, so any process can call it.

        Returns the tokens (N,) of the distinct sentences, and the index among these of each of the E sentences.
        """
        distinct = {sentence: index for index, sentence in enumerate(dict.fromkeys(sentences))}
        tokens = self._token_lists(list(distinct))
        ids_N = torch.tensor([token for ids in tokens for token in ids], dtype=torch.long)
        return Ragged(ids_N, Layout.of([len(ids) for ids in tokens])), [distinct[sentence] for sentence in sentences]

    def encode_tokens(self, tokens: Ragged, order: Sequence[int]) -> Ragged:
        """Token features of E sentences, as from `encode`, for the output of `tokenize`."""
        tokens = Ragged(hardware.to_device_async(tokens.values, self.device), tokens.layout.to(self.device))
        layout = Layout.of(list(map(self._output_length, tokens.layout.lengths)), device=self.device)
        values_ND = self._encode(tokens, layout)
        if len(layout.lengths) < len(order):
            rows_n, layout = _select(layout, order)
            values_ND = values_ND[rows_n]
        # A new layout: this one may cache inference tensors, which autograd cannot save for the backward pass.
        return Ragged(values_ND, layout.to(self.device))

    def count_rows(self, sentences: Sequence[str]) -> int:
        """N of these sentences, without encoding them; equal sentences count separately."""
        return sum(self._output_length(len(ids)) for ids in self._token_lists(list(sentences)))

    def fills(self, sentence: str) -> bool:
        """Whether a sentence has as many tokens as are kept, or more."""
        return self.count_rows([sentence]) >= self.max_tokens

    def _output_length(self, length: int) -> int:
        """Number of rows of a sentence with `length` tokens."""
        return min(length - sum(self._dropped), self.max_tokens)

    def _token_lists(self, sentences: list[str]) -> list[list[int]]:
        if not sentences:
            return []
        tokens = self._tokenizer(sentences, truncation=True, max_length=self._max_positions)["input_ids"]
        for sentence, ids in zip(sentences, tokens, strict=True):
            if self._output_length(len(ids)) < 1:
                raise InputError(f"{shown(sentence)}: no token in the vocabulary of {self.folder}")
        return [list(ids) for ids in tokens]

    def _encode(self, tokens: Ragged, layout: Layout) -> Tensor:
        """Rows (N, D) of sentences, with this output layout."""
        # Allocated outside inference mode, so that autograd can save it in the layers that consume it.
        values_ND = torch.empty(sum(layout.lengths), self.width, device=self.device)
        with torch.inference_mode():
            for batch in _batches(tokens.layout.lengths, self._token_budget):
                tokens_n, input_layout = _select(tokens.layout, batch)
                hidden_bLD = self._hidden(Ragged(tokens.values[tokens_n], input_layout))
                target_n, output_layout = _select(layout, batch)
                start_n = output_layout.owner_N * hidden_bLD.shape[1] + self._dropped[0]
                rows_nD = hidden_bLD.flatten(0, 1)[start_n + output_layout.position_N]
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
    """Number of special tokens that the tokenizer adds before and after a sentence."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    before = next(start for start in range(len(full) + 1) if full[start : start + len(plain)] == plain)
    return before, len(full) - len(plain) - before


def _select(layout: Layout, order: Sequence[int]) -> tuple[Tensor, Layout]:
    """Row indices of the selected sequences, one sequence after the other, and their layout."""
    chosen = Layout.of([layout.lengths[index] for index in order], device=layout.device)
    starts_b = layout.starts_B[hardware.to_device_async(torch.tensor(order), layout.device)]
    return starts_b[chosen.owner_N] + chosen.position_N, chosen


def _batches(lengths: Sequence[int], token_budget: int) -> Iterator[list[int]]:
    """Indices of sentences in batches of similar length within the token budget, longest first."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    start = 0
    while start < len(order):
        size = max(1, token_budget // lengths[order[start]])
        yield order[start : start + size]
        start += size
