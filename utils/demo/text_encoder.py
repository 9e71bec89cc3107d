"""A small randomly initialised RoBERTa with its tokenizer, which encodes captions and their edits without downloads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from method.runtime.hub_environment import check_timeouts
from method.runtime.pretrained import quiet_transformers

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
HEADS = 4
# Norm of a word embedding: well above that of a position embedding, so that words outweigh positions.
WORD_NORM = 1.5


def save_text_encoder(folder: Path, vectors: Mapping[str, npt.NDArray[np.float64]], seed: int) -> None:
    """Save a two-layer RoBERTa, and a tokenizer with one token per word.

    Args:
        folder: of the encoder.
        vectors: word -> its embedding (D,) of norm about 1. D, a multiple of `HEADS`, becomes the hidden size.
        seed: of the other weights.
    """
    check_timeouts()  # a wrong one makes the import fail
    # Imported here because it takes seconds.
    from tokenizers import ByteLevelBPETokenizer
    from transformers import RobertaConfig, RobertaModel, RobertaTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    width = len(next(iter(vectors.values())))
    trained = ByteLevelBPETokenizer()
    sentences = [f"{word.capitalize()} {word}." for word in vectors]
    trained.train_from_iterator(
        sentences, vocab_size=6000, min_frequency=1, special_tokens=SPECIAL, show_progress=False
    )
    trained.save_model(str(folder))
    tokenizer = RobertaTokenizerFast.from_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        intermediate_size=2 * width,
        max_position_embeddings=66,
        type_vocab_size=1,
        pad_token_id=SPECIAL.index("<pad>"),
        bos_token_id=SPECIAL.index("<s>"),
        eos_token_id=SPECIAL.index("</s>"),
    )
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        torch.manual_seed(seed)
        model = RobertaModel(config, add_pooling_layer=False)
        embeddings = model.embeddings.word_embeddings.weight.data
        for word, vector_D in vectors.items():
            (token,) = tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
            embeddings[token] = WORD_NORM * torch.from_numpy(vector_D)
        model.save_pretrained(folder)
