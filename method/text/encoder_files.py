"""The folder of a text encoder: what must be in it, what identifies it, and loading it without running its code."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from method.runtime.errors import InputError
from method.runtime.files import require_file, sha256

# A tokeniser comes as one of these sets of files; without any, transformers would make one that knows no word.
_TOKENIZERS = (
    ("tokenizer.json",),
    ("vocab.json", "merges.txt"),
    ("vocab.txt",),
    ("sentencepiece.bpe.model",),
    ("spiece.model",),
)
_SETTINGS = ("config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_REMEDY = "`python utils/download_roberta.py` fetches one, --text_encoder names another folder"


def load_encoder(folder: Path, width: int) -> tuple[Any, Any]:
    """Tokeniser and model in a folder, from local files only, pickled code refused.

    Args:
        folder: config.json, weights (safetensors, else tensors-only .bin) and the tokeniser's files.
        width: the hidden size that is expected.

    Raises:
        InputError: for anything missing, broken, incomplete, of another width, or not an encoder.
    """
    require_parts(folder)
    # Imported here because it takes seconds, and most runs have no edited captions.
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    _settle_tokenizer_threads()
    safely: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    with _failures_named(folder), _quiet_transformers():
        config = AutoConfig.from_pretrained(folder, **safely)
    if config.is_encoder_decoder:
        raise InputError(f"{folder}: a {config.model_type} model, expected an encoder without a decoder; {_REMEDY}")
    found = getattr(config, "hidden_size", None)
    if found != width:
        raise InputError(
            f"{folder}: hidden size {found}, expected {width} as in --q_feat_size: the encoder that made the token "
            "features; --text_encoder names its folder, `python utils/download_roberta.py --model NAME` fetches one"
        )
    # A pooler that the file lacks is drawn at random: not from the random state of the training.
    with _failures_named(folder), _quiet_transformers(), torch.random.fork_rng(devices=[]):
        tokenizer = AutoTokenizer.from_pretrained(folder, **safely)
        loaded = AutoModel.from_pretrained(folder, config=config, output_loading_info=True, weights_only=True, **safely)
    model, report = loaded
    # The pooler is not used here, and the weights of masked language models come without it.
    missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise InputError(f"{folder}: {len(missing)} weights missing, such as {missing[0]}; {_REMEDY}")
    known = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > known:
        raise InputError(f"{folder}: the tokeniser has {len(tokenizer)} tokens, the model only {known}; {_REMEDY}")
    return tokenizer, model


def encoder_digest(folder: Path) -> str:
    """Digest of all files in an encoder's folder that decide its features; InputError when a part is missing."""
    require_parts(folder)
    weights = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    names = {*_SETTINGS, *(name for parts in _TOKENIZERS for name in parts)}
    paths = [path for path in (folder / name for name in sorted(names)) if path.exists()]
    lines = [f"{path.name} {sha256(path)}\n" for path in [*paths, *weights]]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def require_parts(folder: Path) -> None:
    """InputError unless the folder holds a config, weights and a tokeniser."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder, expected a text encoder; {_REMEDY}")
    missing = [] if (folder / "config.json").exists() else ["config.json"]
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
        missing.append("model.safetensors")
    if not any(all((folder / name).exists() for name in names) for names in _TOKENIZERS):
        missing.append("tokenizer.json (or vocab.json with merges.txt)")
    if missing:
        raise InputError(f"{folder}: no {', no '.join(missing)}, expected a whole text encoder; {_REMEDY}")
    for path in folder.iterdir():  # a pipe would be waited for, a device be read without end
        if path.exists() and not path.is_dir():
            require_file(path)


@functools.cache
def _settle_tokenizer_threads() -> None:
    """Let tokenisers use threads here and not in processes forked from here, where they would wait for them for ever.

    Left to itself the library prints a warning from every data worker.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.register_at_fork(after_in_child=lambda: os.environ.update(TOKENIZERS_PARALLELISM="false"))


@contextlib.contextmanager
def _failures_named(folder: Path) -> Iterator[None]:
    """Whatever a broken file makes any of the libraries that read it raise, as InputError."""
    try:
        yield
    except Exception as error:
        said = str(error).strip().split("\n", 1)[0][:200]
        reason = f"{type(error).__name__}: {said}"
        raise InputError(f"{folder}: cannot be loaded as a text encoder ({reason}); {_REMEDY}") from error


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No progress bars and reports from transformers: what matters in them is checked here."""
    from transformers.utils import logging

    verbosity, had_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bars:
            logging.enable_progress_bar()
