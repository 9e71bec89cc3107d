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
from method.runtime.hub_environment import check_timeouts

# A tokeniser comes as one of these sets of files; without any, transformers would make one that knows no word.
_TOKENIZERS = (
    ("tokenizer.json",),
    ("vocab.json", "merges.txt"),
    ("vocab.txt",),
    ("sentencepiece.bpe.model",),
    ("spiece.model",),
)
_SETTINGS = ("config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
# Encoders whose last layer is followed by nothing, so that a model with fewer layers ends in an earlier hidden state.
_LAYERS_CAN_BE_LEFT_OUT = ("bert", "camembert", "roberta", "xlm-roberta")


def encoder_remedy(dataset: str | None = None) -> str:
    """How to get the text encoder of a dataset, as error messages say it."""
    if dataset == "tvr":  # its encoder was never released
        return "`python utils/tune_text_encoder.py tvr` makes one like TVR's, --text_encoder names another folder"
    return "`python utils/download_roberta.py` fetches one (--model NAME another), --text_encoder names another folder"


def load_encoder(folder: Path, width: int, layer: int = -1, dataset: str | None = None) -> tuple[Any, Any, int]:
    """Load the tokeniser and the model in a folder, from local files only; pickled code is refused.

    Args:
        folder: config.json, weights (safetensors, else tensors-only .bin) and the tokeniser's files.
        width: the hidden size that is expected.
        layer: index into the hidden states. Layers behind it are not loaded where the model ends in it without them.
        dataset: whose token features the encoder is for; error messages say how to get it.

    Returns:
        Tokeniser, model, and the index of the layer in the hidden states of this model.

    Raises:
        InputError: for anything missing, broken, incomplete, of another width, or not an encoder, and for a layer
            that it does not have.
    """
    require_parts(folder, dataset)
    remedy = encoder_remedy(dataset)
    check_timeouts()  # a wrong one makes the import fail
    # Imported here because it takes seconds, and most runs have no edited captions.
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    _settle_tokenizer_threads()
    safely: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    with failures_named(folder, remedy), quiet_transformers():
        config = AutoConfig.from_pretrained(folder, **safely)
    if config.is_encoder_decoder:
        raise InputError(f"{folder}: a {config.model_type} model, expected an encoder without a decoder; {remedy}")
    found = getattr(config, "hidden_size", None)
    if found != width:
        raise InputError(
            f"{folder}: hidden size {found}, expected {width} as in --q_feat_size: the encoder that made the token "
            f"features; {remedy}"
        )
    index = _choose_layer(config, layer, folder)
    # A pooler that the file lacks is drawn at random: not from the random state of the training.
    with failures_named(folder, remedy), quiet_transformers(), torch.random.fork_rng(devices=[]):
        tokenizer = AutoTokenizer.from_pretrained(folder, **safely)
        loaded = AutoModel.from_pretrained(folder, config=config, output_loading_info=True, weights_only=True, **safely)
    model, report = loaded
    # The pooler is not used here, and the weights of masked language models come without it.
    missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise InputError(f"{folder}: {len(missing)} weights missing, such as {missing[0]}; {remedy}")
    known = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > known:
        raise InputError(f"{folder}: the tokeniser has {len(tokenizer)} tokens, the model only {known}; {remedy}")
    return tokenizer, model, index


def _choose_layer(config: Any, layer: int, folder: Path) -> int:
    """The index of a layer in the hidden states of the model that `config` then describes."""
    layers = int(getattr(config, "num_hidden_layers", 0))
    if not -layers - 1 <= layer <= layers:
        raise InputError(
            f"--text_layer {layer}: {folder} has {layers} layers, expected {-layers - 1} to {layers} (0 and "
            f"{-layers - 1} are the embeddings, -1 and {layers} the last layer)"
        )
    if config.model_type not in _LAYERS_CAN_BE_LEFT_OUT:
        return layer
    config.num_hidden_layers = layer % (layers + 1)
    return -1


def encoder_digest(folder: Path, dataset: str | None = None) -> str:
    """Digest of all files in an encoder's folder that decide its features; InputError when a part is missing."""
    require_parts(folder, dataset)
    weights = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    names = {*_SETTINGS, *(name for parts in _TOKENIZERS for name in parts)}
    paths = [path for path in (folder / name for name in sorted(names)) if path.exists()]
    lines = [f"{path.name} {sha256(path)}\n" for path in [*paths, *weights]]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def require_parts(folder: Path, dataset: str | None = None) -> None:
    """InputError unless the folder holds a config, weights and a tokeniser."""
    remedy = encoder_remedy(dataset)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder, expected a text encoder; {remedy}")
    missing = [] if (folder / "config.json").exists() else ["config.json"]
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
        missing.append("model.safetensors")
    if not any(all((folder / name).exists() for name in names) for names in _TOKENIZERS):
        missing.append("tokenizer.json (or vocab.json with merges.txt)")
    if missing:
        raise InputError(f"{folder}: no {', no '.join(missing)}, expected a whole text encoder; {remedy}")
    for path in folder.iterdir():  # a pipe would be waited for, a device be read without end
        if path.exists() and not path.is_dir():
            try:
                require_file(path)
            except InputError as error:
                raise InputError(f"{folder}: cannot be loaded as a text encoder ({error}); {remedy}") from error


@functools.cache
def _settle_tokenizer_threads() -> None:
    """Let tokenisers use threads here and not in processes forked from here, where they would wait for them for ever.

    Left to itself the library prints a warning from every data worker.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.register_at_fork(after_in_child=lambda: os.environ.update(TOKENIZERS_PARALLELISM="false"))


@contextlib.contextmanager
def failures_named(folder: Path, remedy: str) -> Iterator[None]:
    """Turn whatever the libraries that read a broken file raise into InputError."""
    try:
        yield
    except Exception as error:
        said = str(error).strip().split("\n", 1)[0][:200]
        reason = f"{type(error).__name__}: {said}"
        raise InputError(f"{folder}: cannot be loaded as a text encoder ({reason}); {remedy}") from error


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence the progress bars and reports of transformers: what matters in them is checked here."""
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
