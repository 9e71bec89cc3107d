"""Fetch a text encoder from the Hugging Face Hub to where training and search look for it, roberta-large by default.

    python utils/download_roberta.py
    python utils/download_roberta.py --model FacebookAI/roberta-base     # for utils/tune_text_encoder.py

Run it again after an interruption: it goes on where it stopped, and does nothing once everything is there.
"""

import argparse
import re
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import method  # noqa: F401 (sets OpenMP variables before torch is imported)

import torch

from method.config.flags import Parser, user_path
from method.runtime.errors import InputError, run_command, summarize
from method.runtime.hub_environment import check_environment
from method.text.encoder import TextEncoder
from utils.hub.fetch import fetch
from utils.hub.record import RECORD_NAME, Record

MODEL = "FacebookAI/roberta-large"
PINNED = {
    MODEL: "722cf37b1afa9454edce342e7895e588b6ff1d59",
    "FacebookAI/roberta-base": "e2da8e2f811d1448a5b465c236feacd80ffbac7b",
}

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_SHARD = re.compile(r"model-\d{5}-of-(\d{5})\.safetensors")
# One of these makes a tokenizer; the other files refine it.
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
    """Fetch an encoder and load it once. InputError, in one line, for everything that can go wrong on the way."""
    options = _read_arguments(arguments)
    out = options.out or Path("checkpoints", options.model.rsplit("/", 1)[-1])
    folder = (options.root_path / out).absolute()
    revision = options.revision or PINNED.get(options.model, "main")
    record = Record.read(folder / RECORD_NAME)
    if record.is_complete(options.model, revision):
        print(f"{folder}: {options.model} at {record.commit} is already here")
        return
    check_environment()
    from utils.hub.repository import open_repository

    repository = open_repository(options.model, revision)
    names = select_files(repository.name, repository.paths)
    files = {name: repository.describe(name) for name in names}
    fetch(repository, files, record)
    words, width = encode_once(folder)
    record.finish(files)
    print(f"{folder}: done, it turns {_SENTENCE!r} into {words} tokens of width {width}")


def select_files(model: str, paths: Collection[str]) -> list[str]:
    """The files of a repository that an encoder needs: configuration, tokenizer, and weights as safetensors only.

    InputError when one of them is not there.
    """
    there = {path for path in paths if "/" not in path}
    if "config.json" not in there:
        raise InputError(f"{model}: no config.json in it, expected the repository of a transformers model")
    tokenizers = [names for names in _TOKENIZERS if names <= there]
    if not tokenizers:
        raise InputError(f"{model}: no tokenizer in it, expected tokenizer.json, or vocab.json and merges.txt")
    return sorted({"config.json", *_weights(model, there), *set().union(*tokenizers), *(_REFINEMENTS & there)})


def encode_once(folder: Path) -> tuple[int, int]:
    """Load an encoder as training would and encode a sentence; its number of tokens and their width.

    InputError when it cannot be loaded or gives no finite features.
    """
    import transformers  # as utils.hub.repository: after the environment was checked

    try:
        width = int(transformers.AutoConfig.from_pretrained(folder, local_files_only=True).hidden_size)
    except Exception as error:  # foreign files: anything can come out of the code that reads them
        raise InputError(f"{folder}: fetched, but transformers cannot use its config.json ({error!r})") from error
    features_ND = TextEncoder(folder, width, _MAX_TOKENS, torch.device("cpu")).encode([_SENTENCE]).values
    if not features_ND.isfinite().all():
        raise InputError(f"{folder}: fetched, but its features of {_SENTENCE!r} are not finite")
    return features_ND.shape[0], features_ND.shape[1]


def _weights(model: str, there: Collection[str]) -> set[str]:
    if _WEIGHTS in there:
        return {_WEIGHTS}
    shards = {name: match for name in there if (match := _SHARD.fullmatch(name))}
    if _INDEX not in there or not shards:
        raise InputError(f"{model}: no {_WEIGHTS} in it; weights in other formats can run code and are not fetched")
    count = max(int(match[1]) for match in shards.values())
    missing = {f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)} - set(shards)
    if missing:
        raise InputError(f"{model}: {_INDEX} without {summarize(sorted(missing))}")
    return {_INDEX, *shards}


def _read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description="Fetch a text encoder from the Hugging Face Hub.")
    parser.add_argument("--model", default=MODEL, help="repository on the hub, any transformers encoder")
    parser.add_argument(
        "--revision", help=f"branch, tag or commit; if none, a fixed one of {' and '.join(PINNED)}, main of others"
    )
    parser.add_argument(
        "--out", type=user_path, help="folder to fetch it to (default: checkpoints/ and the model's own name)"
    )
    parser.add_argument("--root_path", type=user_path, default=Path(), help="folder from which --out is taken")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run_command(main)
