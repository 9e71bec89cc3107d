"""Words in a sentence: where they stand as whole words, when two spellings are the same, and in which case they are.

"man" stands in "the man's hat", "sit" in neither "sitting" nor "sit-ups". Only a word that stands nowhere else is found
as a part of a hyphenated one ("shirt" in "T-shirt").
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Container, Iterable
from functools import lru_cache

Span = tuple[int, int]

QUOTES = "'’‘\"“”`"
_AROUND = QUOTES + " \t\n\r"
_APOSTROPHES = "'’"
_JOINERS = _APOSTROPHES + "-‐‑"
_CLITIC = re.compile(rf"[{_APOSTROPHES}](?:s|re|ve|ll|d|m)(?!\w)", re.IGNORECASE)


def fold(text: str) -> str:
    """The form in which two spellings of a word are the same: no case, composed accents."""
    return text.lower() if text.isascii() else unicodedata.normalize("NFC", text).casefold()


def bare(word: str) -> str:
    """A word or phrase without quotation marks around it and with single spaces in it."""
    return " ".join(word.strip(_AROUND).split())


def fit_case(word: str, replaced: str) -> str:
    """A word in the case of the one that it replaces: lower, Capitalised, UPPER, or as it is for mixed case.

    >>> fit_case("Sits", "walks"), fit_case("sits", "Walks"), fit_case("TV", "Table"), fit_case("chair", "TV")
    ('sits', 'Sits', 'TV', 'CHAIR')
    """
    if replaced.islower():
        return word.lower()
    if replaced.isupper() and sum(map(str.isupper, replaced)) > 1:
        return word.upper()
    if replaced[:1].isupper():
        return word[:1].upper() + word[1:]
    return word


def find_words(text: str, words: Iterable[str]) -> dict[str, tuple[Span, ...]]:
    """Where each word or phrase stands in a text, from left to right; words that do not stand there are left out.

    Case does not matter, except that of words that differ only in case each is found in its own spelling, and the first
    of them in any other. Quotation marks around a word are no part of it.

    >>> find_words("Will saw the saw-mill.", ["saw", "mill", "will", "ill"])
    {'saw': ((5, 8),), 'mill': ((17, 21),), 'will': ((0, 4),)}
    """
    spellings: dict[str, list[str]] = {}
    for word in words:
        if form := fold(bare(word)):
            spellings.setdefault(form, []).append(word)
    found: dict[str, tuple[Span, ...]] = {}
    for spelled in spellings.values():
        spans = _find(text, _pattern(tuple(spelled)), spellings)
        for word in spelled:
            own = [span for span in spans if len(spelled) == 1 or _speller(text, span, spelled) == word]
            if own:
                found[word] = tuple(own)
    return found


def _speller(text: str, span: Span, spelled: list[str]) -> str:
    """Which of the words that differ only in case a place in the text belongs to."""
    return next((word for word in spelled if bare(word) == text[slice(*span)]), spelled[0])


def _find(text: str, pattern: re.Pattern[str], others: Container[str]) -> list[Span]:
    whole, parts = [], []
    for match in pattern.finditer(text):
        start, end = match.span()
        if unicodedata.category(text[end : end + 1] or " ").startswith("M"):  # a letter whose accent follows it
            continue
        before, after = _joiner(text, start - 1, start - 2), _joiner(text, end, end + 1)
        ends = _CLITIC.match(text, start - 1) if start else None
        if ends and ends.end() == end and text[end : end + 1] not in tuple(QUOTES):  # the "'s" of "she 's here"
            continue
        clitic = _CLITIC.match(text, end)
        if not before and clitic and fold(text[start : clitic.end()]) not in others:
            after = ""  # unless "man's" is a word of its own in the list, "man" stands in it
        if not before and not after:
            whole.append((start, end))
        elif not {before, after} & set(_APOSTROPHES) and fold(_compound(text, start, end)) not in others:
            parts.append((start, end))
    return whole or parts


def _compound(text: str, start: int, end: int) -> str:
    """The hyphenated word around a part of it."""
    while _is_letter(text[start - 1 : start]) or _joiner(text, start - 1, start - 2):
        start -= 1
    while _is_letter(text[end : end + 1]) or _joiner(text, end, end + 1):
        end += 1
    return text[start:end]


def _joiner(text: str, place: int, beyond: int) -> str:
    """The hyphen or apostrophe at a place, if a letter lies beyond it; nothing otherwise, as with a dash of two."""
    if place < 1 or text[place : place + 1] not in tuple(_JOINERS) or not _is_letter(text[beyond : beyond + 1]):
        return ""
    return text[place]


def _is_letter(character: str) -> bool:
    return character.isalnum() or unicodedata.category(character or " ").startswith("M")


@lru_cache(maxsize=1 << 16)
def _pattern(spelled: tuple[str, ...]) -> re.Pattern[str]:
    """Any of these spellings, with accents composed or not."""
    forms = {unicodedata.normalize(form, bare(word)) for word in spelled for form in ("NFC", "NFD")}
    body = "|".join(r"\s+".join(map(re.escape, form.split())) for form in sorted(forms, reverse=True))
    return re.compile(rf"(?<!\w)(?:{body})(?!\w)", re.IGNORECASE)
