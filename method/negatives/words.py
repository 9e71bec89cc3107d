"""Words in a sentence: whole-word search, normalisation of spelling, and letter case.

"man" matches in "the man's hat"; "sit" matches in neither "sitting" nor "sit-ups". A part of a hyphenated word
("shirt" in "T-shirt") matches only if the word does not occur elsewhere.
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


def normalize(text: str) -> str:
    """Case-folded text with composed accents (NFC), for comparing spellings."""
    return text.lower() if text.isascii() else unicodedata.normalize("NFC", text).casefold()


def strip_quotes(word: str) -> str:
    """A word or phrase without surrounding quotation marks and with single spaces."""
    return " ".join(word.strip(_AROUND).split())


def match_case(word: str, replaced: str) -> str:
    """A word in the case of the word it replaces: lower, Capitalised or UPPER; unchanged if that one is mixed case.

    >>> match_case("Sits", "walks"), match_case("sits", "Walks"), match_case("TV", "Table"), match_case("chair", "TV")
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
    """The spans (start, end) of each word or phrase in a text, from left to right; words without a match are left out.

    The search ignores case. If several words differ only in case, a match belongs to the one with that very spelling,
    else to the first of them. Quotation marks around a word are not part of it.

    >>> find_words("Will saw the saw-mill.", ["saw", "mill", "will", "ill"])
    {'saw': ((5, 8),), 'mill': ((17, 21),), 'will': ((0, 4),)}
    """
    spellings: dict[str, list[str]] = {}
    for word in words:
        if form := normalize(strip_quotes(word)):
            spellings.setdefault(form, []).append(word)
    matches: dict[str, tuple[Span, ...]] = {}
    for variants in spellings.values():
        spans = _find(text, _pattern(tuple(variants)), spellings)
        for word in variants:
            matching = [span for span in spans if len(variants) == 1 or _variant_at(text, span, variants) == word]
            if matching:
                matches[word] = tuple(matching)
    return matches


def _variant_at(text: str, span: Span, variants: list[str]) -> str:
    """The one of several words that differ only in case to which a span of the text belongs."""
    return next((word for word in variants if strip_quotes(word) == text[slice(*span)]), variants[0])


def _find(text: str, pattern: re.Pattern[str], others: Container[str]) -> list[Span]:
    """The whole-word matches of a pattern; if there are none, its matches as part of a hyphenated word."""
    whole, parts = [], []
    for match in pattern.finditer(text):
        start, end = match.span()
        if unicodedata.category(text[end : end + 1] or " ").startswith("M"):  # a combining accent follows
            continue
        before, after = _joiner(text, start - 1, start - 2), _joiner(text, end, end + 1)
        itself = _CLITIC.match(text, start - 1) if start else None
        if itself and itself.end() == end and text[end : end + 1] not in tuple(QUOTES):  # the "'s" of "she 's here"
            continue
        clitic = _CLITIC.match(text, end)
        if not before and clitic and normalize(text[start : clitic.end()]) not in others:
            after = ""  # "man" matches in "man's", unless "man's" is itself in the list
        if not before and not after:
            whole.append((start, end))
        elif not {before, after} & set(_APOSTROPHES) and normalize(_compound(text, start, end)) not in others:
            parts.append((start, end))
    return whole or parts


def _compound(text: str, start: int, end: int) -> str:
    """The hyphenated word that contains a span."""
    while _is_letter(text[start - 1 : start]) or _joiner(text, start - 1, start - 2):
        start -= 1
    while _is_letter(text[end : end + 1]) or _joiner(text, end, end + 1):
        end += 1
    return text[start:end]


def _joiner(text: str, index: int, beyond: int) -> str:
    """The hyphen or apostrophe at an index if a letter follows at `beyond`, else "", as for a double hyphen."""
    if index < 1 or text[index : index + 1] not in tuple(_JOINERS) or not _is_letter(text[beyond : beyond + 1]):
        return ""
    return text[index]


def _is_letter(character: str) -> bool:
    return character.isalnum() or unicodedata.category(character or " ").startswith("M")


@lru_cache(maxsize=1 << 16)
def _pattern(variants: tuple[str, ...]) -> re.Pattern[str]:
    """Matches any of these spellings, with composed or decomposed accents."""
    forms = {unicodedata.normalize(form, strip_quotes(word)) for word in variants for form in ("NFC", "NFD")}
    body = "|".join(r"\s+".join(map(re.escape, form.split())) for form in sorted(forms, reverse=True))
    return re.compile(rf"(?<!\w)(?:{body})(?!\w)", re.IGNORECASE)
