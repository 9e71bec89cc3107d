"""Download a text encoder, by default roberta-large, from the Hugging Face Hub to where training and search expect it.

    python utils/download_roberta.py
    python utils/download_roberta.py --model FacebookAI/roberta-base     # for utils/tune_text_encoder.py

An interrupted download is resumed by the same command, which does nothing once it is complete.
"""

import argparse
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import method  # noqa: F401 (sets OpenMP variables before torch is imported)

import torch

from method.config.parser import Parser, user_path
from method.runtime.errors import InputError, run_command, summarize
from method.runtime.hub.fetch import fetch
from method.runtime.hub.record import RECORD_NAME, Record
from method.runtime.hub_environment import check_environment
from method.text.encoder import TextEncoder

MODEL = "FacebookAI/roberta-large"
PINNED = {
    MODEL: "722cf37b1afa9454edce342e7895e588b6ff1d59",
    "FacebookAI/roberta-base": "e2da8e2f811d1448a5b465c236feacd80ffbac7b",
}

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_SHARD = re.compile(r"model-\d{5}-of-(\d{5})\.safetensors")
# Sets of files that define a tokenizer.
_TOKENIZERS = (
    {"tokenizer.json"},
    {"vocab.json", "merges.txt"},
    {"vocab.txt"},
    {"sentencepiece.bpe.model"},
    {"spiece.model"},
)
_REFINEMENTS = {"tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"}
_SENTENCE, _MAX_TOKENS = "person opens the door.", 30


def main(arguments: Sequence[str] | None = None) -> None:
    """Download an encoder and load it once. InputError, in one line, for anything that goes wrong."""
    options = _read_arguments(arguments)
    out = options.out or Path("checkpoints", options.model.rsplit("/", 1)[-1])
    folder = (options.root_path / out).absolute()
    revision = options.revision or PINNED.get(options.model, "main")
    download(options.model, revision, folder, _encode_sentence)


def download(
    model: str,
    revision: str,
    folder: Path,
    check: Callable[[Path], str],
    digests: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Download an encoder from the Hub, unless it is complete, and load it once.

    Args:
        model: owner/name.
        revision: branch, tag or commit.
        folder: where its files go.
        check: loads the encoder in a folder and says what it gives; InputError if it cannot.
        digests: file -> SHA-256 that it must have.

    Raises:
        InputError: for anything that goes wrong, in one line.
    """
    record = Record.read(folder / RECORD_NAME)
    if record.is_complete(model, revision):
        print(f"{folder}: {model} at {record.commit} is already complete")
        return
    check_environment()
    from method.runtime.hub.repository import open_repository

    repository = open_repository(model, revision)
    names = select_files(repository.name, repository.paths)
    files = {name: repository.describe(name) for name in names}
    fetch(repository, files, record)
    for name in files.keys() & digests.keys():
        if record.files[name].sha256 != digests[name]:
            raise InputError(
                f"{folder / name}: its SHA-256 is {record.files[name].sha256}, expected {digests[name]}; remove it and "
                "download it from another place"
            )
    said = check(folder)
    record.finish(files)
    print(f"{folder}: done, {said}")


def select_files(model: str, paths: Collection[str]) -> list[str]:
    """The files that an encoder needs: configuration, tokenizer, and weights in safetensors format only.

    InputError for a missing file.
    """
    present = {path for path in paths if "/" not in path}
    if "config.json" not in present:
        raise InputError(f"{model}: no config.json, expected the repository of a transformers model")
    tokenizers = [names for names in _TOKENIZERS if names <= present]
    if not tokenizers:
        raise InputError(f"{model}: no tokenizer, expected tokenizer.json, or vocab.json and merges.txt")
    return sorted({"config.json", *_weights(model, present), *set().union(*tokenizers), *(_REFINEMENTS & present)})


def encode_once(folder: Path) -> tuple[int, int]:
    """Load an encoder as training does and encode a sentence; returns the number of tokens and their width.

    InputError if it cannot be loaded or its features are not finite.
    """
    import transformers  # after the environment was checked, which a wrong timeout would break

    try:
        width = int(transformers.AutoConfig.from_pretrained(folder, local_files_only=True).hidden_size)
    except Exception as error:  # third-party files can raise any exception
        raise InputError(f"{folder}: downloaded, but transformers cannot use its config.json ({error!r})") from error
    features_ND = TextEncoder(folder, width, _MAX_TOKENS, torch.device("cpu")).encode([_SENTENCE]).values
    if not features_ND.isfinite().all():
        raise InputError(f"{folder}: downloaded, but its features of {_SENTENCE!r} are not finite")
    return features_ND.shape[0], features_ND.shape[1]


def _encode_sentence(folder: Path) -> str:
    tokens, width = encode_once(folder)
    return f"{_SENTENCE!r} has {tokens} tokens of width {width}"


def _weights(model: str, present: Collection[str]) -> set[str]:
    if _WEIGHTS in present:
        return {_WEIGHTS}
    shards = {name: match for name in present if (match := _SHARD.fullmatch(name))}
    if _INDEX not in present or not shards:
        raise InputError(f"{model}: no {_WEIGHTS}; weights in other formats can run code and are not downloaded")
    count = max(int(match[1]) for match in shards.values())
    missing = {f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)} - set(shards)
    if missing:
        raise InputError(f"{model}: {_INDEX} without {summarize(sorted(missing))}")
    return {_INDEX, *shards}


def _read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description="Download a text encoder from the Hugging Face Hub.")
    parser.add_argument("--model", default=MODEL, help="repository of any transformers encoder on the Hub")
    parser.add_argument(
        "--revision", help=f"branch, tag or commit (default: a pinned commit of {' and '.join(PINNED)}, else main)"
    )
    parser.add_argument("--out", type=user_path, help="target folder (default: checkpoints/<model>)")
    parser.add_argument("--root_path", type=user_path, default=Path(), help="base folder of a relative --out")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run_command(main)
