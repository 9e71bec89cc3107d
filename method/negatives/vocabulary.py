"""Vocabularies of replaceable words: which words of a caption can be replaced, and by what.

Two JSON files for each kind, as published: caption id -> {word: part-of-speech tag}, and tag -> [words].
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from method.data.edits import Kind
from method.negatives.words import QUOTES, normalize
from method.runtime.errors import InputError, summarize
from method.runtime.files import read_json

log = logging.getLogger(__name__)

_PROPER_NOUN = "NNP"


@dataclass(frozen=True)
class Vocabulary:
    """The replaceable words of captions and their replacements.

    kind: verbs (action) or nouns (object).
    tags_of: caption id -> {word of the caption: its part-of-speech tag}.
    words_of: tag -> interchangeable words, no two of which differ only in case.
    """

    kind: Kind
    tags_of: Mapping[str, Mapping[str, str]]
    words_of: Mapping[str, tuple[str, ...]]


def read_vocabulary(id_path: Path, total_path: Path, kind: Kind, caption_ids: Collection[str]) -> Vocabulary:
    """Read and check the two files of one kind.

    Dropped are proper nouns among the actions, fragments such as "'s", and duplicates. One warning each is logged for
    tags without words, for captions missing from the file, and for captions missing from the dataset.

    Args:
        id_path: JSON file, caption id -> {word: tag}.
        total_path: JSON file, tag -> [words].
        kind: verbs (action) or nouns (object).
        caption_ids: the captions of the dataset, training and evaluation.

    Raises:
        InputError: for a missing or malformed file, if no caption of the dataset is listed, or if no tag has words.
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
    excluded = _PROPER_NOUN if kind == "action" else None  # as in the published program
    return {
        caption_id: {word.strip(): tag for word, tag in tags.items() if _has_letters(word) and tag != excluded}
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
                f"tag {tag!r}: word {index} is {_shown(word)}, expected text"
                for index, word in enumerate(words)
                if not isinstance(word, str)
            ]
    if problems:
        raise InputError(f"{path}: {summarize(problems)}")
    return {tag: _usable(words) for tag, words in stored.items()}


def _usable(words: Sequence[str]) -> tuple[str, ...]:
    """The words without fragments and duplicates, in their order."""
    distinct: dict[str, str] = {}
    for word in words:
        word = " ".join(word.split())
        # Taggers split "she's" and "don't"; a fragment such as "'s" cannot replace a word.
        is_fragment = not word or word[0] in QUOTES or word[-1] in QUOTES or normalize(word) in ("n't", "n’t")
        if not is_fragment and _has_letters(word):
            distinct.setdefault(normalize(word), word)
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
            f"{path}: no caption of the dataset is listed: found ids like {found!r}, expected ids like {expected!r}"
        )
    unknown = [repr(caption_id) for caption_id in tags_of if caption_id not in caption_ids]
    if unknown:
        log.warning("%s: %d captions are not in the dataset: %s", path, len(unknown), summarize(unknown))
    if unlisted:
        shown = summarize([repr(caption_id) for caption_id in sorted(unlisted)])
        log.warning("%s: %d captions of the dataset are missing and get no edits: %s", path, len(unlisted), shown)


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
        log.warning("%s: no words for some tags, whose words are not replaced: %s", total_path, summarize(without))
