"""A CLIP model for tests: small, with random weights and a tokenizer of bytes, saved in a folder."""

from pathlib import Path

import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

WIDTH = 16


def make_clip(folder: Path, image_size: int = 64, seed: int = 0, width: int = WIDTH) -> Path:
    """Save a model for images of this size, sentences of at most 24 tokens and embeddings of this width."""
    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: index for index, word in enumerate(words)}
    CLIPTokenizer(vocab=vocabulary, merges=[]).save_pretrained(folder)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    start, end = vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"]
    ids = {"bos_token_id": start, "eos_token_id": end, "pad_token_id": end}
    config = CLIPConfig(
        projection_dim=width,
        text_config={**size, **ids, "vocab_size": len(words), "max_position_embeddings": 24},
        vision_config={**size, "image_size": image_size, "patch_size": 32},
        initializer_factor=4.0,  # large enough for the input to matter in the embeddings
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        CLIPModel(config).save_pretrained(folder)
    return folder
