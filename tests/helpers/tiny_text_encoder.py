"""A text encoder for tests: a small RoBERTa with random weights and a byte-level BPE tokenizer, saved in a folder."""

from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import RobertaConfig, RobertaModel, RobertaTokenizerFast

WIDTH = 32


def make_text_encoder(
    folder: Path, sentences: Iterable[str], width: int = WIDTH, seed: int = 0, positions: int = 60
) -> Path:
    """Save an encoder of this width for at most `positions` tokens, with a tokenizer trained on the sentences."""
    folder.mkdir(parents=True)
    bpe = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    bpe.train_from_iterator(sentences, vocab_size=600, min_frequency=1, special_tokens=special, show_progress=False)
    bpe.save_model(str(folder))
    RobertaTokenizerFast.from_pretrained(folder).save_pretrained(folder)
    config = RobertaConfig(
        vocab_size=bpe.get_vocab_size(),
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=2 * width,
        max_position_embeddings=positions + 2,  # RoBERTa counts positions from 2
        type_vocab_size=1,
        initializer_range=0.2,  # large enough for words and their order to matter in the features
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        RobertaModel(config).save_pretrained(folder)
    return folder
