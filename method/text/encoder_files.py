"""The folder of a text encoder: its required files, its digest, and loading it without executing code from it."""

from __future__ import annotations

import functools
import hashlib
import os
from pathlib import Path
from typing import Any

import torch

from method.runtime.errors import InputError
from method.runtime.files import require_file, sha256
from method.runtime.hub_environment import check_timeouts
from method.runtime.pretrained import load_errors, quiet_transformers

# Files of a tokenizer. Without one of these sets, transformers creates a tokenizer with an empty vocabulary.
_TOKENIZERS = (
    ("tokenizer.json",),
    ("vocab.json", "merges.txt"),
    ("vocab.txt",),
    ("sentencepiece.bpe.model",),
    ("spiece.model",),
)
_SETTINGS = ("config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
# Encoders without anything after the last layer: truncated to k layers, their output is hidden state k.
_CAN_BE_TRUNCATED = ("bert", "camembert", "roberta", "xlm-roberta")


def encoder_remedy(dataset: str | None = None) -> str:
    """How to get the text encoder of a dataset, for error messages."""
    if dataset == "tvr":  # its encoder was never released
        return "run `python utils/tune_text_encoder.py tvr` to approximate TVR's, or set --text_encoder"
    return "run `python utils/download_roberta.py` (--model NAME for another), or set --text_encoder"


def load_encoder(folder: Path, width: int, layer: int = -1, dataset: str | None = None) -> tuple[Any, Any, int]:
    """Load the tokenizer and the model in a folder, from local files only; pickled code is refused.

    Args:
        folder: config.json, weights (safetensors, else tensors-only .bin) and tokenizer files.
        width: the expected hidden size.
        layer: index into the hidden states. Later layers are not loaded if the architecture allows it.
        dataset: the dataset that the encoder is for; error messages then say how to get it.

    Returns:
        Tokenizer, model, and the index of the layer in the hidden states of this model.

    Raises:
        InputError: for anything missing, corrupt, incomplete, of another width or not an encoder, and for a layer
            that does not exist.
    """
    require_parts(folder, dataset)
    remedy = encoder_remedy(dataset)
    check_timeouts()  # an invalid value makes the import fail
    # Imported here because it takes seconds and most runs have no hard negatives.
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    configure_tokenizer_threads()
    safe: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    with load_errors(folder, remedy), quiet_transformers():
        config = AutoConfig.from_pretrained(folder, **safe)
    if config.is_encoder_decoder:
        raise InputError(f"{folder}: a {config.model_type} model, expected an encoder without a decoder; {remedy}")
    hidden_size = getattr(config, "hidden_size", None)
    if hidden_size != width:
        raise InputError(
            f"{folder}: hidden size {hidden_size}, expected {width} (--q_feat_size), that of the token features; "
            f"{remedy}"
        )
    index = _choose_layer(config, layer, folder)
    # A missing pooler is initialised at random, which must not change the random state of the training.
    with load_errors(folder, remedy), quiet_transformers(), torch.random.fork_rng(devices=[]):
        tokenizer = AutoTokenizer.from_pretrained(folder, **safe)
        loaded = AutoModel.from_pretrained(folder, config=config, output_loading_info=True, weights_only=True, **safe)
    model, report = loaded
    # The pooler is not used, and weights of masked language models lack it.
    missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise InputError(f"{folder}: {len(missing)} weights missing, such as {missing[0]}; {remedy}")
    vocabulary = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > vocabulary:
        raise InputError(f"{folder}: the tokenizer has {len(tokenizer)} tokens, the model only {vocabulary}; {remedy}")
    return tokenizer, model, index


def _choose_layer(config: Any, layer: int, folder: Path) -> int:
    """The index of a layer in the hidden states; truncates `config` to this layer if the architecture allows it."""
    layers = int(getattr(config, "num_hidden_layers", 0))
    if not -layers - 1 <= layer <= layers:
        raise InputError(
            f"--text_layer {layer}: {folder} has {layers} layers, expected {-layers - 1} to {layers} (0 and "
            f"{-layers - 1} are the embeddings, -1 and {layers} the last layer)"
        )
    if config.model_type not in _CAN_BE_TRUNCATED:
        return layer
    config.num_hidden_layers = layer % (layers + 1)
    return -1


def count_positions(model: Any) -> int:
    """Maximum number of tokens: the position embeddings of a model without those reserved for padding."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    return int(getattr(model.config, "max_position_embeddings", 512))


def encoder_digest(folder: Path, dataset: str | None = None) -> str:
    """Digest of all files in an encoder's folder that determine its features; InputError if a part is missing."""
    require_parts(folder, dataset)
    weights = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    names = {*_SETTINGS, *(name for parts in _TOKENIZERS for name in parts)}
    paths = [path for path in (folder / name for name in sorted(names)) if path.exists()]
    lines = [f"{path.name} {sha256(path)}\n" for path in [*paths, *weights]]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def require_parts(folder: Path, dataset: str | None = None) -> None:
    """InputError unless the folder holds a config, weights and a tokenizer."""
    remedy = encoder_remedy(dataset)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder, expected a text encoder; {remedy}")
    missing = [] if (folder / "config.json").exists() else ["config.json"]
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
        missing.append("model.safetensors")
    if not has_tokenizer(folder):
        missing.append("tokenizer.json (or vocab.json with merges.txt)")
    if missing:
        raise InputError(f"{folder}: no {', no '.join(missing)}, expected a complete text encoder; {remedy}")
    for path in folder.iterdir():  # opening a pipe would block, reading a device never end
        if path.exists() and not path.is_dir():
            try:
                require_file(path)
            except InputError as error:
                raise InputError(f"{folder}: cannot be loaded as a text encoder ({error}); {remedy}") from error


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds the files of a tokenizer."""
    return any(all((folder / name).exists() for name in names) for names in _TOKENIZERS)


@functools.cache
def configure_tokenizer_threads() -> None:
    """Use tokenizer threads in this process but not in forked ones, where they would deadlock.

    By default, the library prints a warning from every data worker.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.register_at_fork(after_in_child=lambda: os.environ.update(TOKENIZERS_PARALLELISM="false"))
