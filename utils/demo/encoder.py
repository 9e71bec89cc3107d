"""A small randomly initialised RoBERTa with its tokenizer, which encodes captions and their edits without downloads."""

from __future__ import annotations

from pathlib import Path

import torch

from method.runtime.hub_environment import check_timeouts
from utils.demo.language import vocabulary
from utils.demo.world import word_vector

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
HEADS = 4
# Norm of a word embedding: well above that of a position embedding, so that words outweigh positions.
WORD_NORM = 1.5


def save_encoder(folder: Path, width: int, seed: int) -> None:
    """Save a two-layer RoBERTa of hidden size `width`, and a tokenizer with one token per word."""
    check_timeouts()  # a wrong one makes the import fail
    # Imported here because it takes seconds, and only captions with edits need it.
    from tokenizers import ByteLevelBPETokenizer
    from transformers import RobertaConfig, RobertaModel, RobertaTokenizerFast
    from transformers.utils import logging

    trained = ByteLevelBPETokenizer()
    words = vocabulary()
    sentences = [f"{word.text.capitalize()} {word.text}." for word in words]
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
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = RobertaModel(config, add_pooling_layer=False)
    embeddings = model.embeddings.word_embeddings.weight.data
    for word in words:
        (token,) = tokenizer(f" {word.text}", add_special_tokens=False)["input_ids"]
        embeddings[token] = WORD_NORM * torch.from_numpy(word_vector(word, width, seed))
    logging.disable_progress_bar()
    model.save_pretrained(folder)
