"""Edited captions: copies of a caption in which one verb or noun is another word with the same tag.

A word is replaced wherever it stands in the caption as a whole word, each time in the case it is written in there, and
nothing else of the sentence changes.

Everything is drawn from a key such as (run seed, epoch, caption id, kind) and from nothing else, so that any process on
any machine makes the same edits.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from method.data.captions import Caption
from method.data.edits import Kind
from method.negatives.vocabulary import Vocabulary
from method.negatives.words import Span, bare, find_words, fit_case, fold

Key = str | int


@dataclass(frozen=True)
class Slot:
    """A word of a caption that can be replaced.

    spans: where it stands in the text.
    words: the words of its tag.
    own: its own place among them, len(words) when it is not one of them.
    """

    spans: tuple[Span, ...]
    words: tuple[str, ...]
    own: int

    def __len__(self) -> int:
        return len(self.words) - (self.own < len(self.words))

    def edit(self, text: str, choice: int) -> str:
        """The text with this word replaced by number `choice` of the len(self) others."""
        word = self.words[choice + (choice >= self.own)]
        parts, copied = [], 0
        for start, end in self.spans:
            parts += [text[copied:start], fit_case(word, text[start:end])]
            copied = end
        return "".join([*parts, text[copied:]])


class CaptionEditor:
    """Edits of captions with one vocabulary; where their words stand is looked up once, here."""

    def __init__(self, captions: Sequence[Caption], vocabulary: Vocabulary) -> None:
        self.kind: Kind = vocabulary.kind
        places = {tag: {fold(word): i for i, word in enumerate(words)} for tag, words in vocabulary.words_of.items()}
        self._slots = {caption.id: tuple(_find_slots(caption, vocabulary, places)) for caption in captions}

    def edits(self, caption: Caption, count: int, *key: Key) -> list[str]:
        """At most `count` distinct edits of a caption, never the caption itself; none when nothing can be replaced.

        The replaceable words get equal numbers of edits, within one, as long as the words to replace them with last.
        Two edits are distinct when they differ by more than case.
        """
        return [edit for _, edit in self.edits_by_word(caption, count, *key)]

    def edits_by_word(self, caption: Caption, count: int, *key: Key) -> list[tuple[int, str]]:
        """The same edits, each with the number of the word that it replaces."""
        slots = self._slots[caption.id]
        seen = {fold(caption.text)}
        edits: list[tuple[int, str]] = []

        def accept(slot: int, choice: int) -> bool:
            edit = slots[slot].edit(caption.text, choice)
            folded = fold(edit)
            is_new = folded not in seen
            if is_new:
                seen.add(folded)
                edits.append((slot, edit))
            return is_new

        draw_evenly([len(slot) for slot in slots], count, accept, *key)
        return edits

    def most(self, caption: Caption) -> int:
        """An upper bound on the number of distinct edits of a caption."""
        return sum(map(len, self._slots[caption.id]))

    def count_editable(self) -> int:
        """How many of the captions have edits."""
        return sum(bool(slots) for slots in self._slots.values())


def draw_evenly(sizes: Sequence[int], count: int, accept: Callable[[int, int], bool], *key: Key) -> None:
    """Offer items of groups in a random order, each at most once, until `count` are accepted or all were offered.

    Each group gets as many accepted as any other, within one, until all of its items were offered.

    Args:
        sizes: number of items in each group.
        count: how many to accept.
        accept: is given the number of a group and of an item in it, and says whether it counts.
        key: what the order depends on, besides the sizes and the answers of `accept`.
    """
    uniform = uniform_source(*key)
    decks = [(group, _shuffled(sizes[group], uniform)) for group in _shuffled(len(sizes), uniform)]
    accepted = 0
    while decks and accepted < count:
        lasting = []
        for group, deck in decks:
            if accepted == count:
                return
            for item in deck:
                if accept(group, item):
                    accepted += 1
                    lasting.append((group, deck))
                    break
        decks = lasting


def uniform_source(*key: Key) -> Callable[[], float]:
    """Random numbers in [0, 1) that depend on the key alone, the same in every process and every version of Python."""
    digest = hashlib.blake2b("\x1f".join(map(str, key)).encode(), digest_size=8).digest()
    # Of the module random only random() is promised to stay as it is, so the rest of it is not used.
    return random.Random(int.from_bytes(digest, "little")).random


def _shuffled(size: int, uniform: Callable[[], float]) -> Iterator[int]:
    """0..size-1 in a random order, at a cost in proportion to how many of them are taken."""
    moved: dict[int, int] = {}
    for last in range(size - 1, -1, -1):
        place = int(uniform() * (last + 1))
        yield moved.get(place, place)
        moved[place] = moved.pop(last, last)


def _find_slots(caption: Caption, vocabulary: Vocabulary, places: Mapping[str, Mapping[str, int]]) -> Iterator[Slot]:
    tags = vocabulary.tags_of.get(caption.id, {})
    for word, spans in find_words(caption.text, tags).items():
        words = vocabulary.words_of.get(tags[word], ())
        slot = Slot(spans, words, places.get(tags[word], {}).get(fold(bare(word)), len(words)))
        if len(slot):
            yield slot
