"""The text tower of CLIP: sentences to embeddings in the space of frames, for zero-shot search.

Letters: E sentences, b sentences in a batch, L tokens of the longest, D width of the embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from method.runtime.errors import InputError
from method.runtime.pretrained import CLIP_REMEDY, clip_digest, load_clip_tower, load_errors, quiet_transformers
from method.text.encoder_files import configure_tokenizer_threads, has_tokenizer

_BATCH = 64


class ClipTextEncoder:
    """Embeds sentences by the text tower and projection of a CLIP model in a folder, in fp16 on a GPU.

    InputError if the folder is not that of a complete CLIP model.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        model, config = load_clip_tower(folder, "text")
        if not has_tokenizer(folder):
            raise InputError(f"{folder}: no tokenizer.json (or vocab.json with merges.txt); {CLIP_REMEDY}")
        from transformers import AutoTokenizer

        configure_tokenizer_threads()
        with load_errors(folder, CLIP_REMEDY, "a CLIP model"), quiet_transformers():
            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        self.folder, self.device, self.width = folder, device, int(config.projection_dim)
        self.max_tokens = int(config.max_position_embeddings)
        self._model = model.to(device, torch.float16 if device.type == "cuda" else torch.float32)
        if len(self._tokenizer) > config.vocab_size:
            found = f"the tokenizer has {len(self._tokenizer)} tokens, the model only {config.vocab_size}"
            raise InputError(f"{folder}: {found}; {CLIP_REMEDY}")

    def digest(self) -> str:
        """SHA-256 of the weights."""
        return clip_digest(self.folder)

    def count_tokens(self, sentence: str) -> int:
        """Tokens of a sentence, those that are truncated included."""
        return len(self._tokenizer(sentence, verbose=False)["input_ids"])

    @torch.inference_mode()
    def encode(self, sentences: Sequence[str]) -> Tensor:
        """Embeddings (E, D) of sentences, float32 and not normalised, on the encoder's device.

        A sentence of more tokens than the model has positions (77) is truncated.
        """
        embeddings_ED = torch.empty(len(sentences), self.width, device=self.device)
        order = sorted(range(len(sentences)), key=lambda index: len(sentences[index]))
        for start in range(0, len(order), _BATCH):
            batch = order[start : start + _BATCH]
            tokens = self._tokenizer(
                [sentences[index] for index in batch],
                padding=True,
                truncation=True,
                max_length=self.max_tokens,
                return_tensors="pt",
            ).to(self.device)
            inputs = {name: tokens[name] for name in ("input_ids", "attention_mask")}
            embeddings_ED[torch.tensor(batch, device=self.device)] = self._model(**inputs).text_embeds.float()
        return embeddings_ED.clone()
