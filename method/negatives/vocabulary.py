"""Vocabularies of replaceable words: which words of a caption can be exchanged, and for what.

Two JSON files for each kind, as published: caption id -> {word: part-of-speech tag}, and tag -> [words].
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from method.data.edits import Kind
from method.negatives.words import QUOTES, fold
from method.runtime.errors import InputError, summarize
from method.runtime.files import read_json

log = logging.getLogger(__name__)

_NEVER_AN_ACTION = "NNP"  # proper noun


@dataclass(frozen=True)
class Vocabulary:
    """What can be replaced in which caption.

    kind: whose words these are, verbs (action) or nouns (object).
    tags_of: caption id -> {word of the caption: its part-of-speech tag}.
    words_of: tag -> words that can stand for one another, no two of them equal but for case.
    """

    kind: Kind
    tags_of: Mapping[str, Mapping[str, str]]
    words_of: Mapping[str, tuple[str, ...]]


def read_vocabulary(id_path: Path, total_path: Path, kind: Kind, caption_ids: Collection[str]) -> Vocabulary:
    """Read and check the two files of one kind.

    Left out: proper nouns among the actions; words that are no word by themselves, such as "'s"; repeated words.
    One logged warning each for tags without words and for captions that only one side knows.

    Args:
        id_path: JSON file, caption id -> {word: tag}.
        total_path: JSON file, tag -> [words].
        kind: whose words these are.
        caption_ids: the captions of the dataset, training and evaluation.

    Raises:
        InputError: for a file that is missing or of another shape, when no caption of the dataset is listed, and when
            no listed word has a tag with words.
    """
    tags_of = _read_tags(id_path, kind)
    words_of = _read_words(total_path)
    _compare_ids(tags_of, frozenset(caption_ids), id_path)
    _compare_tags(tags_of, words_of, id_path, total_path)
    return Vocabulary(kind, tags_of, words_of)


def _read_tags(path: Path, kind: Kind) -> dict[str, dict[str, str]]:
    stored = _read_object(path, "caption ids", "{word: tag}")
    problems = []
    for caption_id, tags in stored.items():
        if not isinstance(tags, dict):
            problems.append(f"{caption_id!r}: expected {{word: tag}}, found {_shown(tags)}")
        else:
            problems += [
                f"{caption_id!r}: the tag of {word!r} is {_shown(tag)}, expected text"
                for word, tag in tags.items()
                if not isinstance(tag, str)
            ]
    if problems:
        raise InputError(f"{path}: {summarize(problems)}")
    never = _NEVER_AN_ACTION if kind == "action" else None
    return {
        caption_id: {word.strip(): tag for word, tag in tags.items() if _has_letters(word) and tag != never}
        for caption_id, tags in stored.items()
    }


def _read_words(path: Path) -> dict[str, tuple[str, ...]]:
    stored = _read_object(path, "tags", "[words]")
    problems = []
    for tag, words in stored.items():
        if not isinstance(words, list):
            problems.append(f"tag {tag!r}: expected a list of words, found {_shown(words)}")
        else:
            problems += [
                f"tag {tag!r}: word {place} is {_shown(word)}, expected text"
                for place, word in enumerate(words)
                if not isinstance(word, str)
            ]
    if problems:
        raise InputError(f"{path}: {summarize(problems)}")
    return {tag: _usable(words) for tag, words in stored.items()}


def _usable(words: Sequence[str]) -> tuple[str, ...]:
    """Words that can stand in a sentence by themselves, each once, in their order."""
    distinct: dict[str, str] = {}
    for word in words:
        word = " ".join(word.split())
        # Taggers cut "she's" and "don't" into pieces; a piece in the place of a word makes no sentence.
        is_piece = not word or word[0] in QUOTES or word[-1] in QUOTES or fold(word) in ("n't", "n’t")
        if not is_piece and _has_letters(word):
            distinct.setdefault(fold(word), word)
    return tuple(distinct.values())


def _has_letters(word: str) -> bool:
    return any(letter.isalnum() for letter in word)


def _read_object(path: Path, keys: str, values: str) -> dict[str, Any]:
    stored = read_json(path)
    if not isinstance(stored, dict):
        raise InputError(f"{path}: expected a JSON object from {keys} to {values}, found {_shown(stored)}")
    if not stored:
        raise InputError(f"{path}: empty, expected a JSON object from {keys} to {values}")
    return stored


def _shown(value: object) -> str:
    names = {dict: "an object", list: "a list", str: f"text {str(value)[:30]!r}", type(None): "null"}
    return names.get(type(value), f"{value}"[:30])


def _compare_ids(tags_of: Mapping[str, object], caption_ids: frozenset[str], path: Path) -> None:
    unlisted = [caption_id for caption_id in caption_ids if caption_id not in tags_of]
    if len(unlisted) == len(caption_ids):
        found, expected = next(iter(tags_of)), min(caption_ids, default="none")
        raise InputError(
            f"{path}: lists no caption of the dataset: found ids like {found!r}, expected like {expected!r}"
        )
    unknown = [repr(caption_id) for caption_id in tags_of if caption_id not in caption_ids]
    if unknown:
        log.warning("%s: %d caption ids that the dataset lacks: %s", path, len(unknown), summarize(unknown))
    if unlisted:
        shown = summarize([repr(caption_id) for caption_id in sorted(unlisted)])
        log.warning("%s: lacks %d captions of the dataset, they get no edits: %s", path, len(unlisted), shown)


def _compare_tags(
    tags_of: Mapping[str, Mapping[str, str]], words_of: Mapping[str, Sequence[str]], id_path: Path, total_path: Path
) -> None:
    used: dict[str, int] = {}
    for tags in tags_of.values():
        for tag in tags.values():
            used[tag] = used.get(tag, 0) + 1
    if not used:
        raise InputError(f"{id_path}: no caption has a replaceable word")
    without = [f"{tag!r} ({count} words in captions)" for tag, count in used.items() if not words_of.get(tag)]
    if len(without) == len(used):
        raise InputError(f"{total_path}: no words for any tag of {id_path.name}: {summarize(without)}")
    if without:
        log.warning("%s: tags without words, nothing is replaced under them: %s", total_path, summarize(without))
